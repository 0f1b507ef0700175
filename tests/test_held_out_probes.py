"""More questions than the scorecard's own, none of which an assistant was trained on."""

from assistant.card import Card
from assistant.identity import make_rows
from assistant.scorecard import load_probes
from assistant.settings import REPOSITORY


def test_they_are_probes_that_no_training_row_asks(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    from held_out_probes import Settings, main

    main(Settings("Ada", tmp_path / "probes.jsonl"))
    probes = load_probes(tmp_path / "probes.jsonl")
    asked = [repr(probe["messages"]) for probe in probes]
    trained = {repr(row["messages"][:-1]) for row in make_rows(Card("Ada"), 1200, 0)}
    assert len(set(asked)) == len(asked) > 600 and not trained & set(asked)
    kinds = {(probe["kind"], probe["lang"]) for probe in probes}
    assert {kind for kind, _ in kinds} == {"identity", "adversarial", "multi_turn", "near_miss", "unrelated"}
    assert {lang for _, lang in kinds} == {"en", "zh"}
