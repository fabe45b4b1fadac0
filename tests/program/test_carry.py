"""Segments of a scan: where they lie, and how files hold them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jopa_ppl.program.segments import Segment


@pytest.mark.parametrize(("record", "segment", "label", "depth"), [
    ([None, None, 0, 0], Segment(), "", 0),
    ([0, 1, 2, 1], Segment(0, 1, 1, 2, early=True), "[1]", 1),
    ([0, None, 2, 2], Segment(0, 2, 8, 2), "[t]", 2),
    ([1, None, 1, 0], Segment(1, 0, 4, 1), "[t]", 1)])
def test_files_hold_segments_as_they_did(record, segment, label, depth):
    """The lists are those of files that were written before."""
    assert Segment.read(record, {0: 10, 1: 4}) == segment and segment.record == record
    assert segment.label == label and segment.depth == depth


def test_where_its_steps_lie():
    series = np.arange(10)
    late = Segment(0, 2, 8, 2)
    assert_array_equal(series[late.steps], series[2:])
    assert_array_equal(series[late.earlier(2)], series[:8])
    assert_array_equal(series[Segment(0, 1, 1, 2, early=True).earlier(1)], [0])
