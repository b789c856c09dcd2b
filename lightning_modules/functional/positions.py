"""Three-dimensional rotary positions of Qwen2-VL and Qwen2.5-VL, computed here and passed to every forward.

Versions of transformers disagree about where text continues after a video. This is the rule that the published models
were trained with: one after the largest temporal, vertical or horizontal position.

Shapes: B rows, L tokens, n images, m videos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewards.errors import UserError


def mrope_position_ids(
    input_ids: Tensor,
    attention_mask: Tensor,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    second_per_grid: Tensor | None,
    *,
    image_token_id: int,
    video_token_id: int,
    spatial_merge_size: int,
    tokens_per_second: float,
) -> tuple[Tensor, Tensor]:
    """Positions of every token, and of the token that would follow each row.

    Text counts up by one in all three rows. An image or video starting at position s has, at patch (t, y, x) after
    spatial merging, the positions (s + int(t * seconds * tokens_per_second), s + y, s + x); an image has t = 0.
    Reference: `get_rope_index` of Qwen2.5-VL in transformers 4.51.3, whose float32 arithmetic is kept because it is
    truncated to integers.

    Args:
        input_ids: int64 [B, L], one media token per merged patch.
        attention_mask: [B, L], 0 on padding (either side).
        image_grid_thw: int64 [n, 3] patches of each image, in order of appearance over the rows; None if none.
        video_grid_thw: int64 [m, 3] patches of each video, likewise.
        second_per_grid: float [m], seconds covered by one temporal patch of each video; None counts 1.
        image_token_id: token that stands for one merged image patch.
        video_token_id: token that stands for one merged video patch.
        spatial_merge_size: patches merged along each side.
        tokens_per_second: temporal positions per second of video.

    Returns:
        position_ids int64 [3, B, L], 1 on padding, and next_position int64 [B].

    Raises:
        UserError: media tokens and grids do not match.
    """
    device = input_ids.device
    images = _grids(image_grid_thw)
    videos = _grids(video_grid_thw)
    seconds = [1.0] * len(videos) if second_per_grid is None else second_per_grid.tolist()
    if len(seconds) != len(videos):
        raise UserError(f"second_per_grid has {len(seconds)} entries for {len(videos)} videos; give one per video.")
    queues = {
        image_token_id: iter([(grid, 0.0) for grid in images]),
        video_token_id: iter(list(zip(videos, seconds, strict=True))),
    }

    position_ids = torch.ones(3, *input_ids.shape, dtype=torch.long)
    next_position = torch.zeros(input_ids.shape[0], dtype=torch.long)
    for row, (ids, mask) in enumerate(zip(input_ids.cpu(), attention_mask.cpu().bool(), strict=True)):
        positions = _row_positions(ids[mask].tolist(), queues, spatial_merge_size, tokens_per_second, row)
        position_ids[:, row, mask] = positions
        next_position[row] = positions.max() + 1 if positions.numel() else 0
    left_over = {token: len(list(queue)) for token, queue in queues.items()}
    if any(left_over.values()):
        raise UserError(
            f"{left_over[image_token_id]} image grids and {left_over[video_token_id]} video grids have no media tokens "
            "in input_ids; pass exactly the grids of the media in the prompts."
        )
    return position_ids.to(device), next_position.to(device)


def _grids(grid_thw: Tensor | None) -> list[list[int]]:
    return [] if grid_thw is None else grid_thw.tolist()


def _row_positions(tokens: list[int], queues: dict, merge: int, tokens_per_second: float, row: int) -> Tensor:
    """int64 [3, len(tokens)] for one row without padding; takes the row's media from the front of `queues`."""
    pieces: list[Tensor] = []
    start = position = 0  # first token not yet placed; position that the next piece starts at
    index = 0
    while index < len(tokens):
        if tokens[index] not in queues:
            index += 1
            continue
        pieces.append(position + torch.arange(index - start).expand(3, -1))
        position += index - start
        media = next(queues[tokens[index]], None)
        if media is None:
            raise UserError(f"Row {row} has media tokens ({tokens[index]}) for which no grid is left.")
        (frames, height, width), seconds = media
        piece = _media_positions(frames, height // merge, width // merge, seconds, tokens_per_second)
        end = index + piece.shape[1]
        if any(token != tokens[index] for token in tokens[index:end]) or end > len(tokens):
            raise UserError(
                f"Row {row} has too few media tokens at position {index}: grid {(frames, height, width)} with a merge "
                f"size of {merge} needs {piece.shape[1]}."
            )
        pieces.append(position + piece)
        position += int(piece.max()) + 1
        start = index = end
    pieces.append(position + torch.arange(len(tokens) - start).expand(3, -1))
    return torch.cat(pieces, dim=1)


def _media_positions(frames: int, height: int, width: int, seconds: float, tokens_per_second: float) -> Tensor:
    """int64 [3, frames * height * width], starting at zero."""
    temporal = (torch.arange(frames) * seconds * tokens_per_second).long()
    grid = torch.meshgrid(temporal, torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([axis.reshape(-1) for axis in grid])
