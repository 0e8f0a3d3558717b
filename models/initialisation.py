"""Owns the initial weights: every layer is built here from one generator, and the global random state is never used.

Three schemes. `covloss`: torch's default distributions. `reference`: Keras' (official slot attention): glorot-uniform
kernels, orthogonal recurrent kernel, zero biases. `dinosaur`: torch's defaults with zero biases outside the GRU, and a
Xavier-uniform slot prior. Draws happen in construction order, so one seed gives one model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, assert_never

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

Scheme = Literal["reference", "covloss", "dinosaur"]
Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Builds layers whose parameters are drawn from `generator` (a CPU generator) by `scheme`."""

    scheme: Scheme
    generator: torch.Generator

    def linear(self, inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
        """Dense layer."""
        layer = _unfilled(nn.Linear, inputs, outputs, bias=bias)
        self._fill(layer.weight, layer.bias, fan_in=inputs, fan_out=outputs)
        return layer

    def conv(self, inputs: int, outputs: int, kernel_size: int, *, bias: bool = True) -> nn.Conv2d:
        """Stride-1 convolution that keeps the image size."""
        layer = _unfilled(nn.Conv2d, inputs, outputs, kernel_size, padding="same", bias=bias)
        self._fill(layer.weight, layer.bias, fan_in=inputs * kernel_size**2, fan_out=outputs * kernel_size**2)
        return layer

    def mirrored_conv(self, inputs: int, outputs: int, kernel_size: int) -> nn.Conv2d:
        """A stride-1 transposed convolution, held as the convolution with the flipped kernel that equals it.

        torch takes a transposed convolution's fan-in from its *output* channels, and so does this.
        """
        layer = _unfilled(nn.Conv2d, inputs, outputs, kernel_size, padding="same")
        self._fill(layer.weight, layer.bias, fan_in=outputs * kernel_size**2, fan_out=inputs * kernel_size**2)
        return layer

    def halving_conv(self, inputs: int, outputs: int, kernel_size: int) -> nn.Conv2d:
        """Stride-2 convolution, of an odd kernel, that exactly halves an even image size."""
        layer = _unfilled(nn.Conv2d, inputs, outputs, kernel_size, stride=2, padding=kernel_size // 2)
        self._fill(layer.weight, layer.bias, fan_in=inputs * kernel_size**2, fan_out=outputs * kernel_size**2)
        return layer

    def doubling_conv(self, inputs: int, outputs: int, kernel_size: int) -> nn.ConvTranspose2d:
        """Stride-2 transposed convolution that exactly doubles the image size."""
        layer = _unfilled(
            nn.ConvTranspose2d,
            inputs,
            outputs,
            kernel_size,
            stride=2,
            padding=(kernel_size - 1) // 2,
            output_padding=kernel_size % 2,
        )
        self._fill(layer.weight, layer.bias, fan_in=outputs * kernel_size**2, fan_out=inputs * kernel_size**2)
        return layer

    @torch.no_grad()
    def conv_over_frames(self, channels: int, kernel_size: int) -> nn.Conv3d:
        """Convolution of the last `kernel_size` frames at each place, unpadded: its draws plus the identity for the last one.

        So layers put between those of an image's network start near doing nothing, and do not dampen what passes.
        """
        layer = _unfilled(nn.Conv3d, channels, channels, (kernel_size, 1, 1))
        self._fill(layer.weight, layer.bias, fan_in=channels * kernel_size, fan_out=channels * kernel_size)
        layer.weight[:, :, -1, 0, 0] += torch.eye(channels)
        return layer

    @torch.no_grad()
    def gru_cell(self, inputs: int, hidden: int) -> nn.GRUCell:
        """GRU with two biases (torch's equations; Keras' `reset_after` form)."""
        cell = _unfilled(nn.GRUCell, inputs, hidden)
        match self.scheme:
            case "covloss" | "dinosaur":
                for parameter in cell.parameters():
                    self._uniform(parameter, 1 / math.sqrt(hidden))
            case "reference":
                self._uniform(cell.weight_ih, math.sqrt(6 / (inputs + 3 * hidden)))
                nn.init.orthogonal_(cell.weight_hh, generator=self.generator)
                cell.bias_ih.zero_()
                cell.bias_hh.zero_()
            case _:
                assert_never(self.scheme)
        return cell

    @torch.no_grad()
    def slot_prior(self, slot_size: int) -> tuple[nn.Parameter, nn.Parameter]:
        """`mu` and `log_sigma` of the initial slots, each of shape [D].

        The originals hold them as [1,1,D], of which Keras takes fans of 1 and D for Xavier's bound, but torch D and D.
        """
        mu, log_sigma = torch.empty(slot_size), torch.empty(slot_size)
        match self.scheme:
            case "covloss":
                mu.normal_(generator=self.generator)
                log_sigma.uniform_(generator=self.generator)
            case "reference":
                self._uniform(mu, math.sqrt(6 / (1 + slot_size)))
                self._uniform(log_sigma, math.sqrt(6 / (1 + slot_size)))
            case "dinosaur":
                self._uniform(mu, math.sqrt(3 / slot_size))
                self._uniform(log_sigma, math.sqrt(3 / slot_size))
            case _:
                assert_never(self.scheme)
        return nn.Parameter(mu), nn.Parameter(log_sigma)

    @torch.no_grad()
    def xavier(self, inputs: int, outputs: int, *, bias: bool = False, fan_out: int | None = None) -> nn.Linear:
        """Dense layer with a Xavier-uniform kernel, whatever the scheme, and a zero bias if any.

        `fan_out`: of the whole matrix, where `outputs` is only a part of it.
        """
        layer = _unfilled(nn.Linear, inputs, outputs, bias=bias)
        self._uniform(layer.weight, math.sqrt(6 / (inputs + (fan_out or outputs))))
        if bias:
            layer.bias.zero_()
        return layer

    @torch.no_grad()
    def position_table(self, tokens: int, size: int, distribution: Literal["normal", "xavier"]) -> nn.Parameter:
        """Learned positions [N,D]: N(0, 0.02^2), or Xavier-uniform of that shape."""
        table = torch.empty(tokens, size)
        match distribution:
            case "normal":
                table.normal_(0, 0.02, generator=self.generator)
            case "xavier":
                self._uniform(table, math.sqrt(6 / (tokens + size)))
            case _:
                assert_never(distribution)
        return nn.Parameter(table)

    def learned_rows(self, rows: int, size: int) -> nn.Parameter:
        """Learned vectors [rows, size], such as queries: N(0, 1) * size^-0.5."""
        return nn.Parameter(torch.empty(rows, size).normal_(0, size**-0.5, generator=self.generator))

    @torch.no_grad()
    def start_token(self, size: int) -> nn.Parameter:
        """The first input of an autoregressive decoder [C]: N(0, 1) * C^-0.5."""
        return nn.Parameter(torch.empty(size).normal_(0, size**-0.5, generator=self.generator))

    @torch.no_grad()
    def _fill(self, weight: Tensor, bias: Tensor | None, *, fan_in: int, fan_out: int) -> None:
        match self.scheme:
            case "covloss":
                self._uniform(weight, 1 / math.sqrt(fan_in))
                if bias is not None:
                    self._uniform(bias, 1 / math.sqrt(fan_in))
            case "reference":
                self._uniform(weight, math.sqrt(6 / (fan_in + fan_out)))
                if bias is not None:
                    bias.zero_()
            case "dinosaur":
                self._uniform(weight, 1 / math.sqrt(fan_in))
                if bias is not None:
                    bias.zero_()
            case _:
                assert_never(self.scheme)

    def _uniform(self, tensor: Tensor, bound: float) -> None:
        tensor.uniform_(-bound, bound, generator=self.generator)


def _unfilled(kind: type[Layer], *sizes: int | tuple[int, ...], **options: Any) -> Layer:
    """A layer with uninitialised parameters: its constructor would draw from the global random state."""
    layer: Layer = skip_init(kind, *sizes, **options)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return layer
