"""PyTorch's side of a comparison: one measurement in one process, as one JSON object on one line.

The README in this folder says what is measured; side_by_side.py runs this in turn with Sesqui's side.
"""

import argparse
import json
import math
import resource
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
QUESTION_TOKENS = 37
ANSWER_TOKENS = 2
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
    "gpt2-small": Shape(
        layers=12,
        width=768,
        heads=12,
        vocabulary=50257,
        sequence=128,
        positions=1024,
        batch=4,
        tied_head=True,
    ),
}


class Cache:
    """Keys and values of one layer, written in place: [batch, heads, positions, width / heads]."""

    def __init__(self, shape: Shape, batch: int, positions: int):
        size = (batch, shape.heads, positions, shape.width // shape.heads)
        self.keys = torch.zeros(size, device=DEVICE, dtype=DTYPE)
        self.values = torch.zeros(size, device=DEVICE, dtype=DTYPE)

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

    def states(self, inputs: torch.Tensor, start: int = 0, caches: list[Cache] | None = None):
        """After the final norm, from input embeddings without positions."""
        places = torch.arange(start, start + inputs.shape[1], device=inputs.device)
        x = inputs + self.positions(places)
        for index, block in enumerate(self.blocks):
            x = block(x, start, caches[index] if caches else None)
        return self.norm(x)

    def forward(self, ids: torch.Tensor, start: int = 0, caches: list[Cache] | None = None):
        return self.head(self.states(self.tokens(ids), start, caches))


def train_step(model, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """Forward, backward and update; the loss is read on the host, as a training loop does."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=AUTOCAST):
        logits = model(ids[:, :-1])
    logits = getattr(logits, "logits", logits)
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


class Own:
    """The model above, its cache written in place."""

    def __init__(self, shape: Shape, batch: int, positions: int):
        self.model = MODEL
        self.caches = [Cache(shape, batch, positions) for _ in range(shape.layers)]
        self.start = 0

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.tokens(ids)

    def states(self, inputs: torch.Tensor) -> torch.Tensor:
        states = self.model.states(inputs, self.start, self.caches)
        self.start += inputs.shape[1]
        return states

    def head(self, states: torch.Tensor) -> torch.Tensor:
        return self.model.head(states)


class Transformers:
    """Hugging Face's GPT-2 with its dynamic cache."""

    def __init__(self, shape: Shape, batch: int, positions: int):
        self.model = MODEL
        self.cache = None

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.transformer.wte(ids)

    def states(self, inputs: torch.Tensor) -> torch.Tensor:
        out = self.model.transformer(inputs_embeds=inputs, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        return out.last_hidden_state

    def head(self, states: torch.Tensor) -> torch.Tensor:
        return self.model.lm_head(states)


@torch.inference_mode()
def answer(reader, prompt: torch.Tensor, latent_steps: int, tokens: int) -> list[list[int]]:
    """Latent steps, each fed the state before it, then greedy decoding; each token passes through the host."""
    rows = [[] for _ in range(prompt.shape[0])]
    states = reader.states(reader.embed(prompt))[:, -1:]
    for _ in range(latent_steps):
        states = reader.states(states)
    for _ in range(tokens):
        chosen = reader.head(states)[:, -1].argmax(dim=-1).tolist()
        for row, token in zip(rows, chosen):
            row.append(token)
        if len(rows[0]) < tokens:
            ids = torch.tensor(chosen, device=DEVICE).unsqueeze(1)
            states = reader.states(reader.embed(ids))
    return rows


@torch.inference_mode()
def assert_cache_is_exact(reader, prompt: torch.Tensor) -> None:
    """A benchmark of a wrong decoder is worthless: cached and full passes must agree."""
    whole = reader(prompt.shape[0]).states(reader(1).embed(prompt))
    parts = reader(prompt.shape[0])
    first = parts.states(parts.embed(prompt[:, :-1]))
    last = parts.states(parts.embed(prompt[:, -1:]))
    difference = (torch.cat([first, last], dim=1) - whole).abs().max().item()
    tolerance = 1e-3 if DTYPE is torch.float32 else 0.2
    assert difference < tolerance, f"cached and full states differ by {difference}"


def build(shape: Shape, implementation: str):
    if implementation == "own":
        return Gpt(shape)
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.positions,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=shape.tied_head,
    )
    return GPT2LMHeadModel(config)


def peak_megabytes() -> float:
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    global DEVICE, DTYPE, AUTOCAST, MODEL
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", choices=["train", "decode", "latent", "matrix-rate", "bandwidth"])
    parser.add_argument("--shape", choices=SHAPES, default="small-gpt")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--latent-steps", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--implementation", choices=["own", "transformers"], default="own")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--bf16", action="store_true", help="autocast in training, bf16 weights in decoding"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    DEVICE, AUTOCAST = arguments.device, arguments.bf16
    DTYPE = torch.bfloat16 if arguments.bf16 and arguments.work != "train" else torch.float32

    shape = SHAPES[arguments.shape]
    work = arguments.work
    batch = arguments.batch or (shape.batch if work == "train" else 1)
    MODEL = None
    if work in ("train", "decode", "latent"):
        MODEL = build(shape, arguments.implementation).to(device=DEVICE, dtype=DTYPE)
        if arguments.compile:
            MODEL.compile(dynamic=work != "train")
    kinds = {"own": Own, "transformers": Transformers}

    def reader(rows: int, positions: int = QUESTION_TOKENS + arguments.latent_steps + NEW_TOKENS):
        return kinds[arguments.implementation](shape, rows, positions)

    losses = []
    if work == "train":
        optimizer = torch.optim.AdamW(
            MODEL.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=DEVICE == "cuda"
        )
        # One token more than is fed, so that every position has a target.
        ids = torch.randint(shape.vocabulary, (batch, shape.sequence + 1), device=DEVICE)
        run = lambda: losses.append(train_step(MODEL, optimizer, ids))
        units, unit = batch * shape.sequence, "tokens"
    elif work in ("decode", "latent"):
        length = PROMPT_TOKENS if work == "decode" else QUESTION_TOKENS
        steps = 0 if work == "decode" else arguments.latent_steps
        tokens = NEW_TOKENS if work == "decode" else ANSWER_TOKENS
        prompt = torch.randint(shape.vocabulary, (batch, length), device=DEVICE)
        MODEL.eval()
        assert_cache_is_exact(reader, prompt)
        run = lambda: answer(reader(batch, length + steps + tokens), prompt, steps, tokens)
        units, unit = (batch * tokens, "tokens") if work == "decode" else (batch, "questions")
    elif work == "matrix-rate":
        a, b = torch.rand(2, 1536, 1536, device=DEVICE)
        run = lambda: (a @ b)[0].tolist()
        units, unit = 2 * 1536**3, "operations"
    else:
        vector = torch.ones(64 << 20, device=DEVICE)
        run = lambda: vector.sum().item()
        units, unit = 4 * (64 << 20), "bytes"

    # Compiling takes several runs.
    for _ in range(3 if arguments.compile else 1):
        run()
    milliseconds = []
    for _ in range(arguments.repetitions):
        start = time.perf_counter()
        run()
        milliseconds.append(1000 * (time.perf_counter() - start))
    assert not losses or (math.isfinite(losses[-1]) and losses[-1] < losses[0]), losses
    median = statistics.median(milliseconds)
    row = {
        "work": work,
        "shape": arguments.shape,
        "batch": batch,
        "framework": f"torch {torch.__version__}",
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        "milliseconds": milliseconds,
        "milliseconds_median": median,
        "unit": unit,
        "per_second": 1000 * units / median,
        "peak_megabytes": peak_megabytes(),
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
