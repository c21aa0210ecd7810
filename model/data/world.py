"""A procedural world with ground truth: what its documents teach is known exactly, and so is every
right answer.

Needs   a seed.
Yields  training documents of twelve tasks in four families, and held-out items with choices and a
        chance level.

    knowledge   home, trade, colour          facts of this world; they can only be learnt by heart
    reading     repeat, binding, update      the answer stands in the text of the question
    logic       chain, order, boolean        the answer follows from what the text says
    code        arithmetic, index, variable  the answer is what a line of Python would give

Held-out: every situation has a key (its names and numbers); one key in eight, by hash, never occurs
in training, and items are made from those keys alone. So no item outside `knowledge` can be
answered by recall.

Chance is the accuracy of picking among an item's choices blindly: 1 / choices. Choices are as
plausible as the answer (they come from the same text, or from the same closed set).
"""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from model.errors import ConfigError

FAMILIES = ("knowledge", "reading", "logic", "code")

TOWNS = ("Arden", "Brook", "Cliff", "Dover", "Elm", "Ford", "Glen", "Hill")
TRADES = ("baker", "clerk", "diver", "farmer", "guard", "miner", "potter", "sailor")
COLOURS = ("amber", "black", "green", "grey", "pink", "red", "violet", "white")
PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jan", "Kim", "Leo",
          "Mia", "Ned", "Ola", "Pia", "Quin", "Ray", "Sue", "Tom")  # fmt: skip
THINGS = ("bell", "book", "cake", "coin", "cup", "drum", "fan", "flag", "fork", "hat", "key",
          "lamp", "map", "mask", "pen", "pot", "ring", "rope", "shoe", "toy")  # fmt: skip
PLACES = ("attic", "barn", "boat", "cave", "cellar", "garden", "hall", "kitchen", "tent", "tower",
          "well", "yard")  # fmt: skip
VARIABLES = tuple("abcdefgh")
SYLLABLES = ("ba", "do", "fe", "gu", "ki", "lo", "ma", "ne", "pi", "ru", "sa", "ti", "vo", "zu")
BEASTS_IN_ALL = 64
HELD_OUT_SHARE = 8
"""One situation in this many is kept for the items."""


@dataclass(frozen=True)
class Item:
    """A question with its choices; the prompt is continued by exactly one right choice."""

    task: str
    prompt: str
    choices: tuple[str, ...]
    answer: int

    @property
    def right(self) -> str:
        """The right continuation."""
        return self.choices[self.answer]


@dataclass(frozen=True)
class Question:
    """A text to be continued, its right continuation, and what that could be confused with."""

    text: str
    answer: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Situation:
    """One drawn case of a task: what is said, and the questions it answers; the first one is the
    task's own.

    Training documents ask all of them, in any order; items ask the first.
    """

    said: str
    questions: tuple[Question, ...]
    rest: str = ""
    """What a document goes on with after its questions."""
    held_by: str = ""
    """What decides whether it is held out; where empty, what is said or else the question."""

    @property
    def key(self) -> str:
        """What is held out together: no training document has a held-out key."""
        return self.held_by or self.said or self.questions[0].text


@dataclass(frozen=True)
class Task:
    """A task of the world: how a situation is drawn, and how many choices its items have."""

    name: str
    draw: Callable[[World, random.Random], Situation]
    num_choices: int
    between: str = ". "
    """What stands between two questions of a training document."""
    recall: bool = False
    """Whether it is answered by heart, so that training may show the item's own situation."""

    @property
    def family(self) -> str:
        """knowledge, reading, logic or code."""
        return self.name.split("/")[0]

    @property
    def chance(self) -> float:
        """Accuracy of a blind pick among the choices."""
        return 1.0 / self.num_choices


class World:
    """All facts of one seed, and the documents and items that follow from them.

    Args:
        seed: decides the facts, which situations are held out, every document and every item.

    Example:
        >>> world = World(seed=0)
        >>> item = world.items("code/arithmetic", 1)[0]
        >>> eval(item.prompt.removesuffix("==")) == int(item.right)
        True
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = random.Random(f"facts/{seed}")
        names = [(a + b).capitalize() for a in SYLLABLES for b in SYLLABLES if a != b]
        self.beasts = tuple(rng.sample(names, BEASTS_IN_ALL))
        self.facts = {
            "home": {name: rng.choice(TOWNS) for name in self.beasts},
            "trade": {name: rng.choice(TRADES) for name in self.beasts},
            "colour": {name: rng.choice(COLOURS) for name in self.beasts},
        }

    def document(self, task: str, index: int) -> str:
        """Training document number `index` of a task: one situation with its answer, never a
        held-out one.
        """
        chosen = find_task(task)
        rng = random.Random(f"train/{self.seed}/{task}/{index}")
        situation = chosen.draw(self, rng)
        while not chosen.recall and self.is_held_out(task, situation.key):
            situation = chosen.draw(self, rng)
        asked = list(situation.questions)
        rng.shuffle(asked)
        return (
            situation.said + chosen.between.join(q.text + q.answer for q in asked) + situation.rest
        )

    def items(self, task: str, number: int) -> list[Item]:
        """The first `number` distinct held-out items of a task, the same ones every time.

        Raises:
            ConfigError: no such task, or it has not so many distinct held-out situations.
        """
        chosen = find_task(task)
        rng = random.Random(f"items/{self.seed}/{task}")
        made: dict[str, Item] = {}
        for _ in range(1000 * number):
            if len(made) == number:
                break
            situation = chosen.draw(self, rng)
            asked = situation.questions[0]
            prompt = situation.said + asked.text
            if prompt in made or not (chosen.recall or self.is_held_out(task, situation.key)):
                continue
            choices = [asked.answer, *rng.sample(sorted(set(asked.others)), chosen.num_choices - 1)]
            rng.shuffle(choices)
            made[prompt] = Item(task, prompt, tuple(choices), choices.index(asked.answer))
        if len(made) < number:
            raise ConfigError(
                f"{number} items of {task} asked for; it has {len(made)} distinct held-out ones: "
                f"ask for at most {len(made)}."
            )
        return list(made.values())

    def is_held_out(self, task: str, key: str) -> bool:
        """Whether training never shows this situation."""
        digest = hashlib.blake2b(f"{self.seed}/{task}/{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % HELD_OUT_SHARE == 0


def _ask(
    text: str, answer: str, options: tuple[str, ...] | list[str], form: str = " {}"
) -> Question:
    """A question whose wrong choices are the other options."""
    return Question(
        text, form.format(answer), tuple(form.format(o) for o in options if o != answer)
    )


def _fact(
    kind: str, verb: str, options: tuple[str, ...]
) -> Callable[[World, random.Random], Situation]:
    def draw(world: World, rng: random.Random) -> Situation:
        name = rng.choice(world.beasts)
        return Situation("", (_ask(f"{name} {verb}", world.facts[kind][name], options),))

    return draw


def _repeat(world: World, rng: random.Random) -> Situation:
    things = rng.sample(THINGS, 8)
    at = rng.randrange(3, 7)
    # The whole list comes twice in a document; the item stops somewhere in the second time.
    again = "".join(f" {t}" for t in things[:at])
    rest = "".join(f" {t}" for t in things[at + 1 :])
    return Situation(f"{' '.join(things)} /", (_ask(again, things[at], things),), rest)


def _binding(world: World, rng: random.Random) -> Situation:
    people, things = rng.sample(PEOPLE, 3), rng.sample(THINGS, 3)
    pairs = list(zip(people, things, strict=True))
    said = "".join(f"{p} has {t}. " for p, t in pairs)
    rng.shuffle(pairs)
    return Situation(said, tuple(_ask(f"{p} has", t, things) for p, t in pairs))


def _update(world: World, rng: random.Random) -> Situation:
    things, places = rng.sample(THINGS, 2), rng.sample(PLACES, 3)
    moved = rng.randrange(2)
    now = {things[0]: places[0], things[1]: places[1], things[moved]: places[2]}
    told = [(things[0], places[0]), (things[1], places[1]), (things[moved], places[2])]
    said = "".join(f"{t} in {p}. " for t, p in told)
    asked = rng.sample(things, 2)
    return Situation(said, tuple(_ask(f"{t} now", now[t], places) for t in asked))


def _chain(world: World, rng: random.Random) -> Situation:
    names = rng.sample(PEOPLE, 6)
    one, two = names[:3], names[3:]
    # Two chains: where a chain ends cannot be told without following the one that is asked for.
    links = [*pairwise(one), *pairwise(two)]
    rng.shuffle(links)
    said = "".join(f"{a} > {b}. " for a, b in links)
    asked = []
    for chain, other in ((one, two), (two, one)):
        choices = [chain[2], chain[1], other[2], other[1]]
        asked.append(_ask(f"{chain[0]} >>", chain[2], choices))
    return Situation(said, tuple(asked))


def _order(world: World, rng: random.Random) -> Situation:
    names = rng.sample(PEOPLE, 3)
    pairs = list(pairwise(names))
    rng.shuffle(pairs)
    said = "".join(
        f"{a} is older than {b}. " if rng.random() < 0.5 else f"{b} is younger than {a}. "
        for a, b in pairs
    )
    asked = [_ask("The oldest is", names[0], names), _ask("The youngest is", names[2], names)]
    rng.shuffle(asked)
    return Situation(said, tuple(asked))


def _boolean(world: World, rng: random.Random) -> Situation:
    a, b, c = names = rng.sample(PEOPLE, 3)
    both, value = rng.random() < 0.5, rng.random() < 0.5
    # Two of the three agree, and the answer turns on whether the odd one out is asked about:
    # neither the word between the names nor a count of what is true says anything.
    truth = dict.fromkeys(names, both)
    truth[c if value == both else rng.choice((a, b))] = not both
    rng.shuffle(names)
    said = "".join(f"{n} is {str(truth[n]).lower()}. " for n in names)
    text = f"{a} {'and' if both else 'or'} {b} is"
    return Situation(said, (_ask(text, str(value).lower(), ("true", "false")),))


def _arithmetic(world: World, rng: random.Random) -> Situation:
    digits = [rng.randrange(10) for _ in range(3)]
    text = f"({'+'.join(map(str, digits))})%10=="
    asked = _ask(text, str(sum(digits) % 10), tuple("0123456789"), "{}")
    # The order does not matter to a sum: three digits are held out in every order.
    return Situation("", (asked,), held_by="+".join(map(str, sorted(digits))))


def _index(world: World, rng: random.Random) -> Situation:
    things = rng.sample(THINGS, 4)
    places = rng.sample(range(4), 3)
    said = f"x = {', '.join(things)}. "
    return Situation(said, tuple(_ask(f"x[{i}] is", things[i], things) for i in places))


def _variable(world: World, rng: random.Random) -> Situation:
    p, q, r, s = rng.sample(VARIABLES, 4)
    values = rng.sample("0123456789", 3)
    given = dict(zip((p, q, r), values, strict=True))
    source, other = rng.sample((p, q, r), 2)
    said = "".join(f"{n}={v};" for n, v in given.items()) + f"{s}={source};"
    # The task is to look up a variable that was set from another; documents also ask for one set
    # outright.
    return Situation(
        said,
        (
            _ask(f"{s}==", given[source], values, "{}"),
            _ask(f"{other}==", given[other], values, "{}"),
        ),
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("knowledge/home", _fact("home", "lives in", TOWNS), 8, recall=True),
        Task("knowledge/trade", _fact("trade", "works as a", TRADES), 8, recall=True),
        Task("knowledge/colour", _fact("colour", "wears", COLOURS), 8, recall=True),
        Task("reading/repeat", _repeat, 8),
        Task("reading/binding", _binding, 3),
        Task("reading/update", _update, 3),
        Task("logic/chain", _chain, 4),
        Task("logic/order", _order, 3),
        Task("logic/boolean", _boolean, 2),
        Task("code/arithmetic", _arithmetic, 10),
        Task("code/index", _index, 4),
        Task("code/variable", _variable, 3, between=";"),
    )
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigError: no such task; the message names the nearest.

    Example:
        >>> find_task("code/index").chance
        0.25
    """
    if (task := TASKS.get(name)) is None:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(f"no task {name!r}; the tasks are {', '.join(TASKS)}{hint}")
    return task
