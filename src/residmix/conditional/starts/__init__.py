"""Where fits of a mixture given metadata begin."""

from residmix.conditional.starts.groups import Group, groups_of
from residmix.conditional.starts.joined import constant_gate, gate_from
from residmix.conditional.starts.search import conditional_starts
from residmix.conditional.starts.short import best_of_short
from residmix.conditional.starts.sought import Sought

__all__ = ["Group", "Sought", "best_of_short", "conditional_starts", "constant_gate", "gate_from", "groups_of"]
