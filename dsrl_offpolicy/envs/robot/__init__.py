"""A real robot as an environment: its limits, who stands beside it, and a recording of what was done."""

from dsrl_offpolicy.envs.robot.limits import Limits
from dsrl_offpolicy.envs.robot.operated import OperatedEnv, RobotSetup
from dsrl_offpolicy.envs.robot.operators import Label, Operator, OperatorGone, ScriptedOperator, TerminalOperator

__all__ = [
    "Label",
    "Limits",
    "OperatedEnv",
    "Operator",
    "OperatorGone",
    "RobotSetup",
    "ScriptedOperator",
    "TerminalOperator",
]
