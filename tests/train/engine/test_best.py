import pytest
from em_train.engine.best import Best


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_is_remembered_and_staleness_counted(higher):
    sign = 1 if higher else -1
    best = Best(higher=higher, stale_after=3)
    values = [0.1, 0.3, 0.2, float("nan"), float("inf") * sign, 0.4, 0.4]
    found = [best.improves(sign * value) for value in values]
    assert found == [True, True, False, False, False, True, False]
    assert best.value == sign * 0.4 and best.since == 1 and not best.stale
    again = Best(higher=higher, stale_after=3)
    again.load_state_dict(best.state_dict())
    assert not again.improves(0.4 * sign) and not again.stale
    assert not again.improves(-0.4 * sign) and again.stale


def test_without_patience_nothing_is_ever_stale():
    best = Best(higher=True)
    for _ in range(100):
        best.improves(0.0)
    assert not best.stale
