"""Pictures as another hand, camera or screen would show them, made on the device that learns from them."""

import torch
from torch.nn import functional

TURNED = 0.3  # radians
SCALED = 0.25
MOVED = 0.1  # of the picture's side
STRANGE = 0.5  # share of the pictures whose colours become others
HIDDEN = 0.3  # share of the pictures a part of which is hidden


def seen_otherwise(
    pixels: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels [n, 3, side, side] from 0 to 255, and what lies at each place [n, rows, columns]: moved alike.

    The third, [n]: whether a picture still has its own colours.
    """
    pixels, places = moved(pixels, places)
    strange = torch.rand(len(pixels), device=pixels.device) < STRANGE
    pixels = torch.where(strange[:, None, None, None], recoloured(pixels), pixels)
    light = 1 + 0.25 * _either(len(pixels), pixels.device)
    return hidden((pixels * light).clamp(0, 255)), places, ~strange


def moved(pixels: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mirrored, turned, scaled and shifted; what comes in at an edge is the edge, with nothing there."""
    count, device = len(pixels), pixels.device
    angle = TURNED * _either(count, device).flatten()
    scale = 1 + SCALED * _either(count, device).flatten()
    mirror = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    matrix = torch.zeros(count, 2, 3, device=device)
    matrix[:, 0, 0], matrix[:, 0, 1] = angle.cos() * scale * mirror, -angle.sin() * scale
    matrix[:, 1, 0], matrix[:, 1, 1] = angle.sin() * scale * mirror, angle.cos() * scale
    matrix[:, :, 2] = 2 * MOVED * (2 * torch.rand(count, 2, device=device) - 1)
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    shown = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    coarse = functional.affine_grid(matrix, [count, 1, *places.shape[1:]], align_corners=False)
    numbered = (places + 1).float()[:, None]  # outside of the picture is 0: nothing
    there = functional.grid_sample(numbered, coarse, mode="nearest", align_corners=False)
    return shown, there[:, 0].long() - 1


def recoloured(pixels: torch.Tensor) -> torch.Tensor:
    """Channels exchanged, grey, of few levels, or lighter and darker by a power."""
    way = torch.randint(4, (len(pixels), 1, 1, 1), device=pixels.device)
    exchanged = pixels[:, torch.randperm(3, device=pixels.device)]
    grey = pixels.mean(1, keepdim=True).expand_as(pixels)
    levels = (pixels / 64).round() * 64
    power = 255 * (pixels / 255).clamp(0, 1) ** torch.exp(0.7 * _either(len(pixels), pixels.device))
    return torch.where(way == 0, exchanged, torch.where(way == 1, grey, torch.where(way == 2, levels, power)))


def hidden(pixels: torch.Tensor) -> torch.Tensor:
    """With a rectangle of one grey over a part of some pictures, up to two fifths of each side."""
    count, _, high, wide = pixels.shape
    device = pixels.device
    rows, columns = torch.arange(high, device=device), torch.arange(wide, device=device)
    inside = torch.rand(count, 1, 1, device=device) < HIDDEN
    for axis, side, shape in ((rows, high, (1, -1, 1)), (columns, wide, (1, 1, -1))):
        length = (0.1 + 0.3 * torch.rand(count, 1, 1, device=device)) * side
        start = torch.rand(count, 1, 1, device=device) * (side - length)
        place = axis.view(shape)
        inside = inside & (place >= start) & (place < start + length)
    return torch.where(inside[:, None], 255 * torch.rand(count, 1, 1, 1, device=device), pixels)


def _either(count: int, device: torch.device) -> torch.Tensor:
    """[count, 1, 1, 1]: from -1 to 1."""
    return 2 * torch.rand(count, 1, 1, 1, device=device) - 1
