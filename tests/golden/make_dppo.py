"""Write tests/golden/dppo: small folders of DPPO, and what DPPO's own code computes from them.

    python tests/golden/make_dppo.py PATH_OF_A_CHECKOUT_OF_DPPO     # needs torch, numpy, yaml and einops

Made with irom-princeton/dppo at cc7234a. `plain_mlp_hist2` is none of these: DPPO's own training wrote it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import yaml

HERE = Path(__file__).parent / "dppo"
OBS, ACTIONS, ROWS, BATCH = 5, 2, 4, 6
SAMPLING = {"denoising_steps": 20, "ddim_steps": 8, "use_ddim": True, "predict_epsilon": True}
MLP = {"_target_": "model.diffusion.mlp_diffusion.DiffusionMLP", "horizon_steps": ROWS, "mlp_dims": [16, 16, 16]}
NETWORKS = {
    "residual_mlp": {**MLP, "residual_style": True, "time_dim": 8, "activation_type": "ReLU"},
    "cond_mlp": {**MLP, "residual_style": True, "time_dim": 8, "cond_mlp_dims": [12, 6], "use_layernorm": True},
    "unet": {
        "_target_": "model.diffusion.unet.Unet1D", "diffusion_step_embed_dim": 4, "dim": 4, "dim_mults": [1, 2],
        "kernel_size": 3, "n_groups": 2, "cond_predict_scale": True,
    },
    "unet_small_encoder": {
        "_target_": "model.diffusion.unet.Unet1D", "diffusion_step_embed_dim": 4, "dim": 4, "dim_mults": [1],
        "n_groups": 2, "smaller_encoder": True, "activation_type": "ReLU", "groupnorm_eps": 1.0e-4,
    },
}  # fmt: skip


def built(settings: dict) -> torch.nn.Module:
    """A network of DPPO's with new weights, larger than freshly made ones, so that the noise matters."""
    from model.diffusion.mlp_diffusion import DiffusionMLP
    from model.diffusion.unet import Unet1D

    arguments = {name: value for name, value in settings.items() if name != "_target_"}
    kind = Unet1D if "dim_mults" in settings else DiffusionMLP
    network = kind(action_dim=ACTIONS, cond_dim=OBS, **arguments)
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return network


def chain(model: torch.nn.Module, obs: torch.Tensor, noise: torch.Tensor, **given: object) -> torch.Tensor:
    """What DPPO's sampler goes through; its own loop draws the first noise itself."""
    from model.diffusion.sampling import make_timesteps

    x, states = noise, [noise]
    for i, t in enumerate(model.ddim_t):
        steps = make_timesteps(len(x), t, "cpu"), make_timesteps(len(x), i, "cpu")
        x, _ = model.p_mean_var(x, steps[0], {"state": obs}, index=steps[1], **given)
        states.append(x)
    return torch.stack(states, 1)


def save(folder: Path, content: dict, network: dict, arrays: dict, **model: object) -> None:
    """Write checkpoint, YAML, and what was computed."""
    torch.save(content, folder / "checkpoint.pt")
    described = {
        "obs_dim": OBS, "action_dim": ACTIONS, "cond_steps": 1, "act_steps": 3, "horizon_steps": ROWS,
        "model": {**SAMPLING, **model, "horizon_steps": "${horizon_steps}", "network": network},
    }  # fmt: skip
    (folder / "dsrl_model.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    np.savez_compressed(folder / "io.npz", **{name: np.asarray(value) for name, value in arrays.items()})


@torch.no_grad()
def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    from model.diffusion.diffusion import DiffusionModel
    from model.diffusion.diffusion_eval import DiffusionEval

    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = {**SAMPLING, "horizon_steps": ROWS, "obs_dim": OBS, "action_dim": ACTIONS, "device": "cpu"}
    obs, noise = torch.rand(BATCH, 1, OBS) * 2 - 1, torch.randn(BATCH, ROWS, ACTIONS)
    for name, settings in NETWORKS.items():
        folder = HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        content, arrays = {"epoch": 1}, {"obs": obs, "noise": noise}
        for weights in ("model", "ema"):
            if weights == "model" or "dim" not in settings:  # one set of a U-Net, for its size
                model = DiffusionModel(built(settings), **given)
            content[weights] = model.state_dict()
            arrays[f"chain_{weights}"] = chain(model, obs, noise)
        save(folder, content, settings, arrays)
    folder, settings = HERE / "fine_tuned", NETWORKS["residual_mlp"]
    folder.mkdir(exist_ok=True)
    actors = {"actor": built(settings), "actor_ft": built(settings)}
    weights = {f"{part}.{name}": v for part, net in actors.items() for name, v in net.state_dict().items()}
    content = {"itr": 1, "model": {**weights, **{k.replace("actor.", "network."): v for k, v in weights.items()}}}
    content["model"]["critic.Q1.moduleList.0.linear_1.weight"] = torch.zeros(4, OBS)
    save(folder, content, settings, {}, ft_denoising_steps=3)
    arrays = {"obs": obs, "noise": noise}
    for name, steps in (("chain_actor", 0), ("chain_actor_ft", 3)):
        model = DiffusionEval(str(folder / "checkpoint.pt"), steps, network=built(settings), **given)
        arrays[name] = chain(model, obs, noise, deterministic=True)
    save(folder, content, settings, arrays, ft_denoising_steps=3)


if __name__ == "__main__":
    main(sys.argv[1])
