"""A file's stamp notices every changed bit, and says how the file differs."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posttrain import digests


def test_the_digest_is_xxh3_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert digests.file_digest(path) == "99aa06d3014798d86001c324468d497f"  # XXH3's own vector for nothing, seed 0
    path.write_bytes(bytes(range(256)) * 5000)  # more than one piece
    assert digests.file_digest(path) == digests.bytes_digest(path.read_bytes())


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=5000), place=st.integers(0), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(tmp_path, content, place, bit):
    path = tmp_path / "file"
    path.write_bytes(content)
    stamped = digests.stamp(path)
    assert digests.difference(path, stamped) is None
    damaged = bytearray(content)
    damaged[place % len(content)] ^= 1 << bit
    path.write_bytes(damaged)
    assert "digest" in digests.difference(path, stamped)


@pytest.mark.parametrize("left, said", [(b"abcd", "has 4 bytes, 3 were written"), (None, "No such file")])
def test_a_file_of_another_size_or_none_is_not_read(tmp_path, left, said):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    stamped = digests.stamp(path)
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    assert said in digests.difference(path, stamped)
