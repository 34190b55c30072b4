"""The fit of the constants of `method="auto"` to measured times."""

import itertools
import math
import re
from typing import Any

import pytest

from diffstride_hybrid.spectral.tensorflow import engines
from diffstride_hybrid.spectral.tensorflow.engines import Crossover, resolve_method
from experiments import RESULTS
from experiments.benchmark import cases, crossovers, report


def rows_of(place: str, fft: float, matmul: float | None, height: int = 64, batch: int = 4) -> list[dict[str, Any]]:
    times = {"fft": fft, "matmul": matmul}
    size = {"part": "engines", "place": place, "height": height, "channels": 4, "batch": batch}
    return [{**size, "variant": name, "least": least} for name, least in times.items() if least]


def synthetic(crossover: Crossover, signals: bool = False) -> list[crossovers.Times]:
    """What the engines take if the constants are right: the model of `Crossover`, as times."""
    places = []
    for n, channels, batch in itertools.product((16, 64, 128, 256, 512, 1024), (4, 64), (1, 16)):
        matrices = crossover.matrices * (n if signals else 1) / (batch * channels)
        matmul = n * (1.0 + crossover.channels / channels + matrices)
        fft = crossover.limit * math.log2(n + 1)
        places.append(crossovers.Times(1 if signals else n, n, channels, batch, fft, matmul))
    return places


@pytest.mark.parametrize("name", ["LEARNED_MAPS", "FIXED_MAPS", "LEARNED_SIGNALS"])
def test_the_fit_makes_the_choices_of_the_constants_that_made_the_times(name: str, monkeypatch: pytest.MonkeyPatch):
    signals = name.endswith("SIGNALS")
    true = Crossover(31.0, 9.0, {"LEARNED_MAPS": 40.0, "FIXED_MAPS": 0.0, "LEARNED_SIGNALS": 0.02}[name])
    monkeypatch.setattr(engines, name, Crossover(1900.0, 1.0, 0.0))  # By these, products would win everywhere.
    times = synthetic(true, signals)
    assert {place.fft < place.matmul for place in times} == {True, False}
    assert crossovers.judged(getattr(engines, name), times).share < 0.7
    fit = crossovers.fitted(name, times)
    assert (fit.share, round(fit.loss, 2)) == (1.0, 0.0)
    clear = [place for place in times if not 0.9 < place.fft / place.matmul < 1.1]
    for place in clear:
        assert resolve_method("auto", fit.crossover, *place[:4]) == ("fft" if place.fft < place.matmul else "matmul")


def test_matrices_that_are_constants_cost_nothing_in_the_fit():
    costly = synthetic(Crossover(31.0, 0.0, 40.0))
    assert crossovers.fitted("FIXED_MAPS", costly).crossover.matrices == 0.0
    assert crossovers.fitted("LEARNED_MAPS", costly).crossover.matrices > 0.0


def test_the_present_constants_stay_if_no_others_choose_better():
    assert crossovers.fitted("LEARNED_MAPS", synthetic(engines.LEARNED_MAPS)).crossover == engines.LEARNED_MAPS


def test_a_choice_is_right_within_ten_percent():
    always_fft = Crossover(1e-3, 0.0, 0.0)
    places = [crossovers.Times(64, 64, 4, 4, fft, 1.0) for fft in (0.5, 1.09, 1.11, 2.0)]
    fit = crossovers.judged(always_fft, places)
    assert fit.share == 0.5
    assert fit.loss == pytest.approx((math.log(1.09) + math.log(1.11) + math.log(2.0)) / 4)


def test_times_are_collected_for_each_pooling():
    rows = [
        *rows_of("map of 64x64x4", 2.0, 1.0),
        *rows_of("map of 64x64x4, batch 1", 2.0, 1.0, batch=1),
        *rows_of("map of 64x64x4, fixed", 2.0, 1.0),
        *rows_of("map of 64x64x4, resampled", 2.0, 1.0),
        *rows_of("signal of 1,024x4, resampled", 2.0, 1.0, 1024),
        *rows_of("signal of 200,000x4", 2.0, None, 200_000),
        {"part": "layer", "place": "stem", "variant": "fft", "least": 1.0},
    ]
    found = crossovers.times_by_constant(rows)
    assert {name: len(times) for name, times in found.items()} == {
        **{"LEARNED_MAPS": 2, "FIXED_MAPS": 1, "RESAMPLED_MAPS": 1},
        **{"RESAMPLED_SIGNALS": 1, "LEARNED_SIGNALS": 1},
    }
    assert found["LEARNED_MAPS"][1] == (64, 64, 4, 1, 2.0, 1.0)
    assert found["RESAMPLED_SIGNALS"] == [(1, 1024, 4, 4, 2.0, 1.0)]
    assert found["LEARNED_SIGNALS"] == [(1, 200_000, 4, 4, 2.0, math.inf)]
    assert crossovers.judged(Crossover(1e9, 0.0, 0.0), found["LEARNED_SIGNALS"]).loss == pytest.approx(math.log(10.0))


def test_on_a_gpu_all_constants_are_fitted():
    rows = [{**vars(case), "least": 1.0} for case in cases.cases(["engines"], 64, "gpu")]
    found = crossovers.times_by_constant(rows)
    assert all(isinstance(getattr(engines, name), Crossover) for name in found)
    assert set(found) == {name for name, value in vars(engines).items() if isinstance(value, Crossover)}
    assert all(len({place.channels for place in times}) > 1 for times in found.values())
    for name in ("LEARNED_MAPS", "LEARNED_SIGNALS"):  # Their matrices cost once a batch.
        batches = {(place.width, place.channels): set() for place in found[name]}
        for place in found[name]:
            batches[place.width, place.channels].add(place.batch)
        assert any(len(several) > 1 for several in batches.values())


def test_the_advice_can_be_pasted():
    text = crossovers.advice([*rows_of("map of 64x64x4", 1.0, 5.0), *rows_of("map of 8x8x4", 1.0, 5.0, 8)], "Card 9")
    assert text.startswith("| constants, Card 9 | places |")
    assert "| LEARNED_MAPS | 2 | 0%, 5.000 | 100%, 1.000 |" in text
    assert "At every place of `LEARNED_MAPS`, `fft` was the faster engine" in text
    names = {"Crossover": Crossover}
    exec(re.search(r"```python\n(.*)\n```", text, re.DOTALL)[1], names)
    assert resolve_method("auto", names["LEARNED_MAPS"], 8, 8, 4, 4) == "fft"
    assert crossovers.advice([{"part": "layer"}], "Card 9") == ""


def test_the_constants_choose_right_at_the_committed_times():
    found = crossovers.times_by_constant(report.read(RESULTS / "engines.csv"))
    assert set(found) == {"LEARNED_MAPS", "LEARNED_SIGNALS"}
    for name, times in found.items():
        assert crossovers.judged(getattr(engines, name), times).share > 0.9
