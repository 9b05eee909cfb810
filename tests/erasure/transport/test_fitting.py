import numpy as np
import pytest

from residmix.erasure.transport import fitting
from residmix.erasure.transport.transport import STARTS, Asked


@pytest.mark.parametrize(("tail", "begun"), [(0.0, 1), (0.6, len(STARTS))])
def test_two_clusters_are_begun_again_only_where_held_out_rows_are_likelier_than_of_one(rng, monkeypatch, tail, begun):
    # one cluster at both sites: two aren't apart, and of a normal one no likelier; with a heavy tail they are
    x = rng.normal(size=(3000, 3)) * np.exp(tail * rng.normal(size=(3000, 1)))
    site = (np.arange(3000) % 2)[:, None] * 1.0
    asked, starts, fit = Asked(x + site, site, np.ones(3000), 1, None, False, 0), [], fitting.fit_transport

    def counted(asked, k, **options):
        starts.extend([options["start"]] if k == 2 else [])
        return fit(asked, k, **options)

    monkeypatch.setattr(fitting, "fit_transport", counted)
    search = fitting._Search(asked.only(np.arange(2000)), asked.only(np.arange(2000, 3000)))
    assert search.look(1, (1,)) and not search.look(2, (1, 2))
    assert starts == list(range(begun))
