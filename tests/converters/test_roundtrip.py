"""Every checkpoint format into every framework and back to features."""

import json

import pytest

from converters import arch as archs
from converters.targets import TARGETS
from converters.verify import installed
from tests.benchmarks import roundtrip
from tests.converters.samples import ARCHS, SAMPLES


def check(row: roundtrip.Row) -> None:
    sample, network = SAMPLES[row["read"]], row["arch"] + SAMPLES[row["read"]].stem
    assert row["made_with"] == sample.made_with
    if row["arch"] not in sample.archs or not TARGETS[row["written"]].builds(network):
        assert (row["max_abs_delta"], row["tensors"]) == (None, 0), row
        return
    names = list(archs.expected(network))
    counters = [name for name in names if name.endswith("num_batches_tracked")]
    assert row["tensors"] == len(names) - len(counters) * (row["written"] == "detectron2"), row
    assert row["max_abs_delta"] <= 1e-4, row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "samples"),
    [
        ("resnet18", [name for name in SAMPLES if name != "detectron2 C4"]),
        pytest.param("resnet50", ["this suite", "detectron2 C4"], marks=pytest.mark.nightly),
    ],
)
def test_round_trips_keep_the_features(arch: str, samples: list[str]) -> None:
    rows = roundtrip.measure([arch], samples)
    targets = [target for target in TARGETS if installed(target)]
    assert [(row["read"], row["written"]) for row in rows] == [(name, target) for name in samples for target in targets]
    for row in rows:
        check(row)


def test_committed_round_trips_are_those_of_the_code() -> None:
    rows = [json.loads(line) for line in roundtrip.RESULTS.read_text().splitlines()]
    assert [(row["read"], row["written"], row["arch"]) for row in rows] == [
        (name, target, arch) for name in SAMPLES for target in TARGETS for arch in ARCHS
    ], "python tests/benchmarks/roundtrip.py writes results/converters.jsonl"
    for row in rows:
        check(row)


def test_a_failing_process_is_reported() -> None:
    with pytest.raises(RuntimeError, match=r"process of the round trip failed: (.|\n)*'no such sample'"):
        roundtrip.measure(["resnet18"], ["no such sample"])
