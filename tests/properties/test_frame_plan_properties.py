"""Frames, sizes and stretches of videos stay within what was asked for."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from hypothesis import assume, example, given
from hypothesis import strategies as st

from datamodules.video.frame_sampling import (
    MAX_ASPECT_RATIO,
    MIN_BUDGET_SLACK,
    FrameConfig,
    plan_frames,
    plan_image_size,
)
from datamodules.video.time_range import TimeRange, time_range
from datamodules.video.types import TimeRangeError
from rewards.errors import UserError
from tests.properties.strategies import JSON_VALUES, ODD_NUMBERS

SIDES = st.integers(1, 20_000)
BUDGETS = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).map(sorted)


@st.composite
def frame_configs(draw: st.DrawFn) -> FrameConfig:
    patch, merge, temporal = draw(st.integers(1, 16)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    (low, high), (image_low, image_high) = draw(BUDGETS), draw(BUDGETS)
    cell = (patch * merge) ** 2
    return FrameConfig(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=temporal,
        num_frames=draw(st.integers(1, 64)) * temporal,
        min_pixels=low,
        max_pixels=max(high, cell),
        image_min_pixels=image_low,
        image_max_pixels=max(image_high, cell),
    )


@given(st.integers(1, 10**7), st.floats(1e-3, 1e4), SIDES, SIDES, frame_configs())
def test_plans_span_the_clip_in_whole_patches(total, fps, height, width, config):
    assume(max(height, width) <= MAX_ASPECT_RATIO * min(height, width))
    plan = plan_frames(total, fps, height, width, config)
    assert list(plan.indices) == sorted(plan.indices) and len(plan.indices) % config.temporal_patch_size == 0
    assert len(plan.indices) <= max(config.num_frames, config.temporal_patch_size)
    assert plan.indices[0] == 0 and (len(plan.indices) == 1 or plan.indices[-1] == total - 1)
    if total >= len(plan.indices):
        assert len(set(plan.indices)) == len(plan.indices)
    assert abs(len(plan.indices) / plan.sample_fps - total / fps) <= 1e-9 * total / fps  # as long as the clip
    largest = max(config.max_pixels, int(config.min_pixels * MIN_BUDGET_SLACK))
    check_size(plan.height, plan.width, height, width, config.grid, largest)


@given(SIDES, SIDES, frame_configs())
def test_image_sizes_keep_the_budget(height, width, config):
    assume(max(height, width) <= MAX_ASPECT_RATIO * min(height, width))
    planned = plan_image_size(height, width, config)
    check_size(*planned, height, width, config.grid, config.image_max_pixels)


def check_size(planned_height: int, planned_width: int, height: int, width: int, grid: int, largest: int) -> None:
    assert planned_height % grid == 0 and planned_width % grid == 0 and min(planned_height, planned_width) >= grid
    if planned_height * planned_width > largest:
        # Only where the short side is one cell already, or where rounding up enlarged it by a row or column of cells.
        enlarged = height * width <= planned_height * planned_width
        assert min(planned_height, planned_width) == grid or enlarged


@example(1, 10**400, 1, 1)
@given(st.integers() | st.just(0), st.floats() | ODD_NUMBERS, st.integers(-5, 10**6), st.integers(-5, 10**6))
def test_impossible_clips_are_refused(total, fps, height, width):
    try:
        plan_frames(total, fps, height, width, FrameConfig())
    except UserError:
        return
    assert total >= 1 and fps > 0 and min(height, width) >= 1


@given(JSON_VALUES, JSON_VALUES)
def test_any_pair_of_json_values_is_a_range_or_refused(start, end):
    try:
        times = time_range(start, end)
    except UserError as error:
        str(error).encode("utf-8", "strict")
        return
    assert times is None or (times.start >= 0 and (times.end is None or times.end > times.start))


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    st.fractions(Fraction(1, 90_000), Fraction(1, 10)),
    st.fractions(0, 50),
    st.none() | st.fractions(0, 50),
)
def test_a_range_holds_the_frames_that_appear_within_it(steps, time_base, start, end):
    assume(end is None or end > start)
    times = [sum(steps[:number]) for number in range(len(steps))]
    duration = (times[-1] + steps[-1]) * time_base
    asked = TimeRange(start=start, end=end)
    try:
        ordinals, seconds = asked.frames(Path("clip.mp4"), times, time_base, duration)
    except TimeRangeError:
        last = duration if end is None else min(end, duration)
        inside = [time for time in times if start <= time * time_base < last]
        assert not inside or start >= duration or end > duration + 1
        return
    stop = duration if end is None else min(end, duration)
    assert list(ordinals) == [number for number, time in enumerate(times) if start <= time * time_base < stop]
    assert seconds == stop - start
