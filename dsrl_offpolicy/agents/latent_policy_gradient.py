"""Stage 2: the latent policy's gradient straight through an action critic and the base policy (LPS, RSS 2026).

There is no Q^W: ``Q(s, w) = Q^A(s, base(s, w))``, and SAC does the rest. A gradient step of the actor goes back
through every step of the base policy's decode, so this is for base policies of few steps. Where a decoded action
is clamped to its bounds no gradient passes.
"""

from __future__ import annotations

import torch

from dsrl_offpolicy.agents.decoded_actions import ActionCriticConfig, ActionDecoder
from dsrl_offpolicy.agents.dsrl_sac_agent import DSRLSACAgent, Networks
from dsrl_offpolicy.agents.steering_agent import Update
from dsrl_offpolicy.contracts import BasePolicy
from dsrl_offpolicy.models.latent_layout import LatentLayout


class LatentPolicyGradientAgent(DSRLSACAgent):
    """SAC with an action critic; ``critic`` is Q^A with its targets.

    Raises:
        InputError: a base policy or ``steer_mode`` that cannot be decoded anew, or a decode that passes no
            gradient on (see :class:`ActionDecoder`).
    """

    Config = ActionCriticConfig
    takes_distilled_critic = False

    def __init__(
        self,
        config: ActionCriticConfig,
        feature_dim: int,
        layout: LatentLayout,
        *,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        base: BasePolicy | None = None,
    ) -> None:
        decoder = ActionDecoder("lps", base, layout, device, differentiable=True)
        super().__init__(
            config,
            feature_dim,
            layout,
            generator=generator,
            device=device,
            base=base,
            critic_input_dim=decoder.dim,
        )
        self.decoder = decoder

    @property
    def networks(self) -> Networks:
        """The agent's own, of latents by way of the actions that they decode to."""
        return super().networks._replace(
            online=lambda s, w: self.critic.online(s, self.decoder(s, w)),
            target=lambda s, w: self.critic.target(s, self.decoder(s, w)),
        )

    def compiled(self, batch_size: int) -> Update | None:
        """Return None: the compiled update of SAC gives the critics latents."""
        return None
