"""Random sealed trails, attacked in every way that one change can: all of it is found.

Three attackers, each stronger than the one before:

1. changes files and leaves the chain as it is;
2. chains the changed segments again, so that each is consistent in itself: the seal finds it;
3. seals again as well: only the seal's digest, kept elsewhere, finds it. A trail in one place has that limit.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beam_entra.audit.record import SEAL_NAME
from beam_entra.audit.verify import verify
from beam_entra.errors import TrailBroken

Files = dict[str, bytes]
Attack = Callable[[Any, Files, random.Random], Files | None]  # None: this trail is too small for it

_randoms = st.randoms(use_true_random=False)
_settings = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _segments(files: Files) -> list[str]:
    return sorted(name for name, data in files.items() if name != SEAL_NAME and data)


def _lines(files: Files, rng: random.Random) -> tuple[str, list[bytes], int]:
    name = rng.choice(_segments(files))
    lines = files[name].splitlines(keepends=True)
    return name, lines, rng.randrange(len(lines))


def _joined(files: Files, name: str, lines: list[bytes]) -> Files:
    return files | {name: b"".join(lines)}


def _other_value(value: Any, rng: random.Random) -> Any:
    """A different value of the same kind, one that the model may well take."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.randint(1, 5)
    if isinstance(value, str):
        digits = [at for at, char in enumerate(value) if char.isdigit()]
        if digits:
            at = rng.choice(digits)
            return value[:at] + str((int(value[at]) + 1) % 10) + value[at + 1 :]
        return value + "x"
    if isinstance(value, dict):
        key = rng.choice(sorted(value))
        return value | {key: _other_value(value[key], rng)}
    if isinstance(value, list):
        at = rng.randrange(len(value))
        return [*value[:at], _other_value(value[at], rng), *value[at + 1 :]]
    return "t1"  # something where there was null


def _edit_field(trails: Any, files: Files, rng: random.Random) -> Files:
    name, lines, at = _lines(files, rng)
    record = json.loads(lines[at])
    field = rng.choice(sorted(record))
    record[field] = _other_value(record[field], rng)
    lines[at] = trails.dump(record) + b"\n"
    return _joined(files, name, lines)


def _edit_byte(trails: Any, files: Files, rng: random.Random) -> Files:
    name = rng.choice([SEAL_NAME, *_segments(files)])
    data = bytearray(files[name])
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return files | {name: bytes(data)}


def _drop(trails: Any, files: Files, rng: random.Random) -> Files:
    name, lines, at = _lines(files, rng)
    return _joined(files, name, lines[:at] + lines[at + 1 :])


def _duplicate(trails: Any, files: Files, rng: random.Random) -> Files:
    name, lines, at = _lines(files, rng)
    lines.insert(rng.randint(0, len(lines)), lines[at])
    return _joined(files, name, lines)


def _insert(trails: Any, files: Files, rng: random.Random) -> Files:
    """A record of another segment, or of this one, made up to fit."""
    _, others, other = _lines(files, rng)
    name, lines, at = _lines(files, rng)
    here = json.loads(lines[at])
    made_up = json.loads(others[other]) | {"seq": here["seq"] + 1, "prev": here["prev"], "time": here["time"]}
    lines.insert(at + 1, trails.dump(made_up) + b"\n")
    return _joined(files, name, lines)


def _swap(trails: Any, files: Files, rng: random.Random) -> Files | None:
    name, lines, _ = _lines(files, rng)
    if len(lines) < 2:
        return None
    one, two = rng.sample(range(len(lines)), 2)
    lines[one], lines[two] = lines[two], lines[one]
    return _joined(files, name, lines)


def _truncate_records(trails: Any, files: Files, rng: random.Random) -> Files:
    name, lines, at = _lines(files, rng)
    return _joined(files, name, lines[:at])


def _truncate_bytes(trails: Any, files: Files, rng: random.Random) -> Files:
    name = rng.choice([SEAL_NAME, *_segments(files)])
    return files | {name: files[name][: rng.randrange(len(files[name]))]}


def _remove_segment(trails: Any, files: Files, rng: random.Random) -> Files:
    gone = rng.choice(sorted(files))
    return {name: data for name, data in files.items() if name != gone}


def _rename_segment(trails: Any, files: Files, rng: random.Random) -> Files:
    name = rng.choice(_segments(files))
    new = rng.choice([f"segment-f0000000-0000-4000-8000-00000000000f-{name[45:]}", f"{name[:45]}00099.jsonl", "x"])
    return {new if old == name else old: data for old, data in files.items()}


def _exchange_segments(trails: Any, files: Files, rng: random.Random) -> Files | None:
    if len(_segments(files)) < 2:
        return None
    one, two = rng.sample(_segments(files), 2)
    return files | {one: files[two], two: files[one]}


def _extra_segment(trails: Any, files: Files, rng: random.Random) -> Files:
    data = files[rng.choice(_segments(files))]
    name = "segment-f0000000-0000-4000-8000-00000000000f-00000.jsonl"
    records = [json.loads(line) for line in data.splitlines()]
    records[0] |= {"segment": name}
    made_up: Files = trails.rechained({name: records})
    return files | rng.choice([made_up, {name: b""}, {name: data}])


def _edit_seal(trails: Any, files: Files, rng: random.Random) -> Files | None:
    """A field of the seal; time, outcome and error are the launcher's word, and protected by the digest alone."""
    seal = json.loads(files[SEAL_NAME])
    field = rng.choice(sorted(seal.keys() - {"time", "outcome", "error"}))
    seal[field] = _other_value(seal[field], rng)
    return files | {SEAL_NAME: trails.dump(seal) + b"\n"}


ATTACKS: dict[str, Attack] = {
    "edit a field": _edit_field,
    "edit a byte": _edit_byte,
    "drop a record": _drop,
    "duplicate a record": _duplicate,
    "insert a record": _insert,
    "swap two records": _swap,
    "cut off whole records": _truncate_records,
    "cut in mid-line": _truncate_bytes,
    "remove a file": _remove_segment,
    "rename a segment": _rename_segment,
    "exchange two segments": _exchange_segments,
    "add a segment": _extra_segment,
    "edit the seal": _edit_seal,
}
REWRITES = (
    "edit a field",
    "drop a record",
    "duplicate a record",
    "insert a record",
    "swap two records",
    "cut off whole records",
    "remove a file",
    "add a segment",
)


@_settings
@given(rng=_randoms)
def test_honest_trails_verify(trails: ModuleType, rng: random.Random) -> None:
    """Whatever the workers did, rolled or not, closed or not, the trail that they and the launcher wrote verifies."""
    store, seal = trails.random_trail(rng)
    summary = verify(store, seal_digest=seal.digest)
    assert summary.seal == seal.record
    assert summary.open_bundles == summary.bundles - summary.counts.get("bundle_closed", 0)


@pytest.mark.parametrize("attack", ATTACKS)
@_settings
@given(rng=_randoms)
def test_change_is_found(trails: ModuleType, attack: str, rng: random.Random) -> None:
    """The first attacker: one change. The digest is not needed, except for a bit of the seal's own few words."""
    store, seal = trails.random_trail(rng)
    changed = ATTACKS[attack](trails, store.files, rng)
    if changed is None or changed == store.files:
        return
    own_words = attack == "edit a byte" and changed[SEAL_NAME] != store.files[SEAL_NAME]
    with pytest.raises(TrailBroken, match=r"^\S+ line \d+: rule \d+: "):
        verify(trails.MemoryTrail(changed), seal_digest=seal.digest if own_words else None)


def _chained_again(trails: Any, files: Files) -> Files | None:
    try:
        seals = {name: data for name, data in files.items() if trails.is_seal(name)}
        return trails.rechained(trails.parsed(files)) | seals  # type: ignore[no-any-return]  # trails is a fixture
    except (KeyError, ValueError):
        return None


@pytest.mark.parametrize("attack", REWRITES)
@_settings
@given(rng=_randoms)
def test_change_that_is_chained_again_is_found(trails: ModuleType, attack: str, rng: random.Random) -> None:
    """The second attacker: numbers, digests and links of every segment are right again. The seal's heads are not."""
    store, _ = trails.random_trail(rng)
    changed = ATTACKS[attack](trails, store.files, rng)
    chained = _chained_again(trails, changed) if changed is not None and SEAL_NAME in changed else None
    if chained is None or chained == store.files:
        return
    with pytest.raises(TrailBroken):
        verify(trails.MemoryTrail(chained))


@_settings
@given(rng=_randoms)
def test_change_that_is_sealed_again_is_found_by_the_digest_alone(trails: ModuleType, rng: random.Random) -> None:
    """The third attacker: everything is rewritten, and it verifies. Who kept the digest elsewhere knows."""
    store, seal = trails.random_trail(rng)
    records = trails.parsed(store.files)
    for found in records.values():
        for record in found:
            if record["kind"] == "segment_opened":
                record["host"] = "somewhere-else"
    forged = trails.MemoryTrail(trails.resealed(trails.rechained(records)))
    if all(not found for found in records.values()):
        return
    assert verify(forged).job == trails.JOB, "nothing in the folder tells"
    with pytest.raises(TrailBroken, match="rule 16"):
        verify(forged, seal_digest=seal.digest)


@pytest.mark.parametrize("field", ["time", "outcome", "error"])
def test_words_of_the_seal_are_held_by_the_digest_alone(trails: ModuleType, field: str) -> None:
    """Honest limit: the launcher's own words in the seal are chained to nothing else in the folder."""
    store, seal = trails.sample()
    other = {"time": "2031-01-31T12:00:00.000000Z", "outcome": "failed", "error": "made up"}[field]
    files = store.files | {SEAL_NAME: trails.dump(json.loads(store.files[SEAL_NAME]) | {field: other}) + b"\n"}
    verify(trails.MemoryTrail(files))
    with pytest.raises(TrailBroken, match="rule 16"):
        verify(trails.MemoryTrail(files), seal_digest=seal.digest)
