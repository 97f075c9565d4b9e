"""PyTorch's side of the CPU comparison: training and decoding of a small GPT.

Prints one JSON object per line: first the environment, then one measurement each for a training
step and for greedy decoding with a key-value cache. The README in this folder says what is
measured and how to run Sesqui's side.
"""

import argparse
import json
import math
import platform
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

LEARNING_RATE = 3e-4
WEIGHT_DECAY = 0.01
PROMPT_TOKENS = 8
NEW_TOKENS = 64
SEED = 0


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    heads: int
    vocabulary: int
    sequence: int  # tokens of one training example
    positions: int  # rows of the table of learned positions
    batch: int
    tied_head: bool


SHAPES = {
    "small-gpt": Shape(
        layers=4,
        width=256,
        heads=4,
        vocabulary=512,
        sequence=64,
        positions=128,
        batch=32,
        tied_head=False,
    ),
    "arith-dag": Shape(
        layers=4,
        width=64,
        heads=4,
        vocabulary=34,
        sequence=72,
        positions=72,
        batch=32,
        tied_head=True,
    ),
}


class Cache:
    """Keys and values of one layer, written in place: [batch, heads, positions, width / heads]."""

    def __init__(self, shape: Shape, batch: int):
        size = (batch, shape.heads, PROMPT_TOKENS + NEW_TOKENS, shape.width // shape.heads)
        self.keys = torch.zeros(size)
        self.values = torch.zeros(size)

    def append(self, start: int, keys: torch.Tensor, values: torch.Tensor):
        end = start + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.attention_norm = nn.LayerNorm(shape.width)
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width)
        self.attention_out = nn.Linear(shape.width, shape.width)
        self.feed_forward_norm = nn.LayerNorm(shape.width)
        self.feed_forward_in = nn.Linear(shape.width, 4 * shape.width)
        self.feed_forward_out = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: torch.Tensor, start: int = 0, cache: Cache | None = None):
        batch, length, width = x.shape
        parts = self.query_key_value(self.attention_norm(x))
        parts = parts.view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        if cache is not None:
            keys, values = cache.append(start, keys, values)
        # One new token may look at everything cached; several at once only occur at position 0.
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=length > 1)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        hidden = self.feed_forward_in(self.feed_forward_norm(x))
        return x + self.feed_forward_out(F.gelu(hidden, approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = nn.Embedding(shape.positions, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied_head:
            self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: torch.Tensor, start: int = 0, caches: list[Cache] | None = None):
        places = torch.arange(start, start + ids.shape[1])
        x = self.tokens(ids) + self.positions(places)
        for index, block in enumerate(self.blocks):
            x = block(x, start, caches[index] if caches else None)
        return self.head(self.norm(x))


def train_step(model: Gpt, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """Forward, backward and update; the loss is read on the host, as a training loop does."""
    logits = model(ids[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def decode(model: Gpt, shape: Shape, prompt: torch.Tensor) -> list[list[int]]:
    """Greedy decoding of NEW_TOKENS per row; each token passes through the host."""
    caches = [Cache(shape, prompt.shape[0]) for _ in model.blocks]
    rows = [[] for _ in range(prompt.shape[0])]
    ids, start = prompt, 0
    for _ in range(NEW_TOKENS):
        logits = model(ids, start, caches)
        start += ids.shape[1]
        chosen = logits[:, -1].argmax(dim=-1).tolist()
        for row, token in zip(rows, chosen):
            row.append(token)
        ids = torch.tensor(chosen).unsqueeze(1)
    return rows


@torch.inference_mode()
def assert_cache_is_exact(model: Gpt, shape: Shape, prompt: torch.Tensor) -> None:
    """A benchmark of a wrong decoder is worthless: cached and full passes must agree."""
    caches = [Cache(shape, prompt.shape[0]) for _ in model.blocks]
    first = model(prompt[:, :-1], 0, caches)
    last = model(prompt[:, -1:], PROMPT_TOKENS - 1, caches)
    full = model(prompt)
    difference = (torch.cat([first, last], dim=1) - full).abs().max().item()
    assert difference < 1e-4, f"cached and full logits differ by {difference}"


def measure(name: str, tokens: int, warm_up: int, repetitions: int, run, **more) -> None:
    for _ in range(warm_up):
        run()
    milliseconds = []
    processor_milliseconds = []
    for _ in range(repetitions):
        start, processor_start = time.perf_counter(), time.process_time()
        run()
        milliseconds.append(1000 * (time.perf_counter() - start))
        processor_milliseconds.append(1000 * (time.process_time() - processor_start))
    median = statistics.median(milliseconds)
    row = {
        "name": name,
        **more,
        "milliseconds_median": round(median, 3),
        "milliseconds": [round(value, 3) for value in milliseconds],
        "processor_milliseconds_median": round(statistics.median(processor_milliseconds), 3),
        "tokens_per_second": round(1000 * tokens / median, 1),
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small-gpt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=3, help="unmeasured runs of each kind")
    parser.add_argument("--repetitions", type=int, default=20, help="measured training steps")
    parser.add_argument("--decode-repetitions", type=int, default=5, help="measured decodings")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)

    shape = SHAPES[arguments.shape]
    model = Gpt(shape)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    environment = {
        "name": "environment",
        "framework": f"torch {torch.__version__}",
        "processor": platform.processor() or platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "shape": arguments.shape,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    print(json.dumps(environment), flush=True)

    prompts = {
        batch: torch.randint(shape.vocabulary, (batch, PROMPT_TOKENS)) for batch in (1, 32)
    }
    assert_cache_is_exact(model, shape, prompts[32])

    # One token more than is fed, so that every position has a target.
    ids = torch.randint(shape.vocabulary, (shape.batch, shape.sequence + 1))
    losses = []
    measure(
        "train_step",
        shape.batch * shape.sequence,
        arguments.warm_up,
        arguments.repetitions,
        lambda: losses.append(train_step(model, optimizer, ids)),
    )
    assert math.isfinite(losses[-1]) and losses[-1] < losses[0], losses

    for batch, prompt in prompts.items():
        measure(
            "decode",
            batch * NEW_TOKENS,
            min(arguments.warm_up, 1),
            arguments.decode_repetitions,
            lambda: decode(model, shape, prompt),
            batch=batch,
        )


if __name__ == "__main__":
    main()
