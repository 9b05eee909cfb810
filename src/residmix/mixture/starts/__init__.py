"""Starting values of EM."""

from residmix.mixture.starts.find import INIT_PARAMS, find_start, find_starts
from residmix.mixture.starts.given import check_given, check_goes_on
from residmix.mixture.starts.sample import subsample

__all__ = ["INIT_PARAMS", "check_given", "check_goes_on", "find_start", "find_starts", "subsample"]
