"""The plain formulation of models and losses, as the reference codes write it: the oracle of the fast paths.

Convolutions channels first, slots broadcast before the decoder's first layer, transposed convolutions as such, the
covariance matrix built whole, the cosine loss by torch's own function on every pair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.build import build_model
from models.slot_autoencoder import SlotAutoencoder
from models.spec import SlotAutoencoderSpec
from models.spec_base import FullResolutionDecoder, UpsamplingDecoder


def plain_grid(size: int) -> Tensor:
    axis = torch.linspace(0, 1, size)
    rows, columns = axis.view(size, 1).expand(size, size), axis.view(1, size).expand(size, size)
    return torch.stack([rows, columns, 1 - rows, 1 - columns], dim=-1)[None]


class PlainPositions(nn.Module):
    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(4, channels)
        self.register_buffer("grid", plain_grid(size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dense(self.grid)


class PlainSlotAttention(nn.Module):
    def __init__(self, inputs: int, dim: int, mlp: int, iterations: int, eps: float = 1e-3) -> None:
        super().__init__()
        self.iterations = iterations
        self.mu, self.log_sigma = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))
        self.norm_inputs = nn.LayerNorm(inputs, eps=eps)
        self.norm_slots = nn.LayerNorm(dim, eps=eps)
        self.norm_mlp = nn.LayerNorm(dim, eps=eps)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(inputs, dim, bias=False)
        self.value = nn.Linear(inputs, dim, bias=False)
        self.gru = nn.GRUCell(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp), nn.ReLU(), nn.Linear(mlp, dim))

    def forward(self, inputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        inputs = self.norm_inputs(inputs)
        k, v = self.key(inputs), self.value(inputs)
        slots = self.mu + self.log_sigma.exp() * noise
        batch, count, dim = slots.shape
        for _ in range(self.iterations):
            previous = slots
            q = self.query(self.norm_slots(slots)) * dim**-0.5
            attention = torch.softmax(torch.einsum("bkd,bnd->bkn", q, k), dim=1)
            weights = attention + 1e-8
            weights = weights / weights.sum(dim=-1, keepdim=True)
            updates = torch.einsum("bkn,bnd->bkd", weights, v)
            slots = self.gru(updates.reshape(-1, dim), previous.reshape(-1, dim)).reshape(batch, count, dim)
            slots = slots + self.mlp(self.norm_mlp(slots))
        return slots, attention


class PlainAutoencoder(nn.Module):
    def __init__(self, spec: SlotAutoencoderSpec) -> None:
        super().__init__()
        self.spec = spec
        size, width, dim = spec.resolution, spec.encoder_channels, spec.slot_size
        convs: list[nn.Module] = []
        for index in range(spec.encoder_layers):
            convs += [nn.Conv2d(width if index else 3, width, 5, padding=2), nn.ReLU()]
        self.encoder = nn.Sequential(*convs)
        self.encoder_positions = PlainPositions(width, size)
        self.norm = nn.LayerNorm(width, eps=1e-3)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.attention = PlainSlotAttention(width, dim, spec.slot_mlp_size, spec.num_iterations)
        decoder, kernel, channels = spec.decoder, spec.decoder.kernel_size, spec.decoder.channels
        layers: list[nn.Module] = []
        if isinstance(decoder, FullResolutionDecoder):
            self.start = size
            for index in range(decoder.layers):
                layers += [nn.ConvTranspose2d(channels if index else dim, channels, kernel, padding=kernel // 2), nn.ReLU()]
        else:
            self.start = decoder.initial_resolution
            reached, inputs = self.start, dim
            while reached < size:
                layers += [nn.ConvTranspose2d(inputs, channels, kernel, stride=2, padding=2, output_padding=1), nn.ReLU()]
                reached, inputs = 2 * reached, channels
            layers += [nn.ConvTranspose2d(channels, channels, kernel, padding=2), nn.ReLU()]
        layers.append(nn.ConvTranspose2d(channels, 4, 3, padding=1))
        self.decoder_positions = PlainPositions(dim, self.start)
        self.decoder = nn.Sequential(*layers)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch, _, height, width = images.shape
        features = self.encoder(images).permute(0, 2, 3, 1)
        features = self.encoder_positions(features).reshape(batch, height * width, -1)
        slots, attention = self.attention(self.mlp(self.norm(features)), noise)
        count, dim = slots.shape[1:]
        x = slots.reshape(batch * count, 1, 1, dim).repeat(1, self.start, self.start, 1)
        x = self.decoder_positions(x).permute(0, 3, 1, 2).contiguous()
        decoded = self.decoder(x).reshape(batch, count, 4, height, width)
        colours, alpha = decoded[:, :, :3], decoded[:, :, 3:]
        masks = torch.softmax(alpha.float(), dim=1)
        return torch.sum(masks * colours, dim=1), masks[:, :, 0], slots, attention


def pairs(plain: PlainAutoencoder, ours: SlotAutoencoder) -> list[tuple[nn.Parameter, nn.Parameter, bool]]:
    """Parameters that must be equal, in order; the flag says that ours holds a transposed convolution's kernel flipped."""
    found: list[tuple[nn.Parameter, nn.Parameter, bool]] = []

    def add(a: nn.Module, b: nn.Module, flipped: bool = False) -> None:
        theirs, mine = dict(a.named_parameters()), dict(b.named_parameters())
        assert theirs.keys() == mine.keys()
        found.extend((theirs[name], mine[name], flipped and name == "weight") for name in theirs)

    for conv, mirror in zip((layer for layer in plain.encoder if isinstance(layer, nn.Conv2d)), ours.encoder.convs, strict=True):
        add(conv, mirror)
    add(plain.encoder_positions.dense, ours.encoder.positions.project)
    add(plain.norm, ours.encoder.norm)
    add(plain.mlp, ours.encoder.mlp)
    add(plain.attention, ours.attention)
    add(plain.decoder_positions.dense, ours.decoder.positions.project)
    transposed = [layer for layer in plain.decoder if isinstance(layer, nn.ConvTranspose2d)]
    if isinstance(plain.spec.decoder, UpsamplingDecoder):
        held = [*ours.decoder.doubling, ours.decoder.smooth, ours.decoder.last]
    else:
        held = [ours.decoder.first.conv, *ours.decoder.middle, ours.decoder.last]
    for layer, mine in zip(transposed, held, strict=True):
        add(layer, mine, flipped=isinstance(mine, nn.Conv2d))
    return found


def as_plain(tensor: Tensor, *, flipped: bool) -> Tensor:
    """Our parameter (or gradient) in the plain form's layout."""
    return tensor.flip(2, 3).transpose(0, 1) if flipped else tensor


def twins(spec: SlotAutoencoderSpec, *, seed: int = 0) -> tuple[SlotAutoencoder, PlainAutoencoder]:
    """Our model and the plain one with the same weights."""
    ours = build_model(spec, generator=torch.Generator().manual_seed(seed))
    assert isinstance(ours, SlotAutoencoder)
    plain = PlainAutoencoder(spec)
    with torch.no_grad():
        for theirs, mine, flipped in pairs(plain, ours):
            theirs.copy_(as_plain(mine, flipped=flipped).view_as(theirs))
    return ours, plain


def plain_covariance(projected: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squared off-diagonal covariances and the variances, from the whole matrix."""
    rows = projected.reshape(-1, projected.shape[-1])
    centred = rows - rows.mean(dim=0)
    covariance = centred.T @ centred / (len(rows) - 1)
    off_diagonal = covariance[~torch.eye(len(covariance), dtype=torch.bool)]
    return (off_diagonal**2).sum(), rows.var(dim=0)


def plain_cosine(projected: Tensor, margin: float) -> Tensor:
    """torch's cosine embedding loss over every ordered pair of slots of every image."""
    batch, count, _ = projected.shape
    first = projected[:, :, None].expand(-1, -1, count, -1).reshape(batch * count * count, -1)
    second = projected[:, None].expand(-1, count, -1, -1).reshape(batch * count * count, -1)
    target = (2 * torch.eye(count) - 1).expand(batch, -1, -1).reshape(-1)
    return F.cosine_embedding_loss(first, second, target, margin=margin)
