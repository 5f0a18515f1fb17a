"""Random crops and flips of whole batches; the numbers are drawn before, a row a sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def offsets(samples: int, crop: int, flip: bool, generator: Generator) -> Tensor:
    """[samples, 3]: top and left of the crop in the padded image (0 … 2 crop), and whether to flip."""
    table = torch.randint(2 * crop + 1, (samples, 3), generator=generator)
    table[:, 2] = torch.randint(2, (samples,), generator=generator) if flip else 0
    return table


class Crops:
    """Images [N, C, H, W], stored with `crop` zeros around them; calling it cuts and mirrors a batch of them.

    On the host NumPy gathers the windows: its copies of whole rows are several times as fast as torch's indexing, which
    goes element by element (scripts/bench_data.py).
    """

    def __init__(self, images: Tensor, crop: int) -> None:
        height, width = images.shape[-2:]
        windows = F.pad(images, (crop,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        self.windows = windows.permute(0, 2, 3, 1, 4, 5)  # [N, 2 crop + 1, 2 crop + 1, C, H, W], a view

    def __call__(self, index: Tensor, table: Tensor) -> Tensor:
        """The images at `index`, cut and mirrored by their rows of `offsets`."""
        top, left, flip = table.unbind(1)
        if self.windows.device.type == "cpu":
            cut = self.windows.numpy()[index.numpy(), top.numpy(), left.numpy()]
            mirrored = flip.bool().numpy()
            cut[mirrored] = cut[mirrored][..., ::-1]
            return torch.from_numpy(cut)
        batch = self.windows[index, top, left]
        return torch.where(flip.bool().view(-1, 1, 1, 1), batch.flip(-1), batch)
