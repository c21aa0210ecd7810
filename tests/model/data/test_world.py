"""The world: every right answer is right, and what is held out was never shown."""

from __future__ import annotations

import re

import pytest

from model.data.world import FAMILIES, TASKS, World, find_task
from model.errors import ConfigError


@pytest.fixture(scope="module")
def world():
    return World(seed=0)


def words(text):
    return re.findall(r"[A-Za-z0-9]+", text)


def solve_fact(kind):
    return lambda world, prompt: " " + world.facts[kind][words(prompt)[0]]


def solve_repeat(world, prompt):
    first, second = (part.split() for part in prompt.split(" / "))
    return f" {first[len(second)]}"


def solve_binding(world, prompt):
    *told, asked = prompt.split(". ")
    holds = {words(t)[0]: words(t)[2] for t in told}
    return f" {holds[words(asked)[0]]}"


def solve_update(world, prompt):
    *told, asked = prompt.split(". ")
    place = {}
    for sentence in told:  # later sentences overwrite earlier ones
        thing, _, where = words(sentence)
        place[thing] = where
    return f" {place[words(asked)[0]]}"


def solve_chain(world, prompt):
    *told, asked = prompt.split(". ")
    to = {words(t)[0]: words(t)[1] for t in told}
    at, hops = words(asked)[0], 0
    while at in to:
        at, hops = to[at], hops + 1
    assert hops == 2
    return f" {at}"


def solve_order(world, prompt):
    *told, asked = prompt.split(". ")
    older = []
    for sentence in told:
        a, _, how, _, b = words(sentence)
        older.append((a, b) if how == "older" else (b, a))
    above, below = {a for a, _ in older}, {b for _, b in older}
    (answer,) = above - below if "oldest" in asked else below - above
    return f" {answer}"


def solve_boolean(world, prompt):
    *told, asked = prompt.split(". ")
    truth = {words(t)[0]: words(t)[2] == "true" for t in told}
    a, how, b, _ = words(asked)
    value = truth[a] and truth[b] if how == "and" else truth[a] or truth[b]
    return f" {str(value).lower()}"


def solve_arithmetic(world, prompt):
    digits = re.match(r"\((\d)\+(\d)\+(\d)\)%10==$", prompt).groups()
    return str(sum(map(int, digits)) % 10)


def solve_index(world, prompt):
    things = words(prompt.split(". ")[0])[1:]
    return f" {things[int(re.search(r'x.(.). is$', prompt).group(1))]}"


def solve_variable(world, prompt):
    *statements, asked = prompt.split(";")
    scope = {}
    exec("\n".join(statements), {}, scope)
    return str(scope[asked.removesuffix("==")])


SOLVERS = {
    "knowledge/home": solve_fact("home"),
    "knowledge/trade": solve_fact("trade"),
    "knowledge/colour": solve_fact("colour"),
    "reading/repeat": solve_repeat,
    "reading/binding": solve_binding,
    "reading/update": solve_update,
    "logic/chain": solve_chain,
    "logic/order": solve_order,
    "logic/boolean": solve_boolean,
    "code/arithmetic": solve_arithmetic,
    "code/index": solve_index,
    "code/variable": solve_variable,
}


def test_there_are_four_families_of_three_tasks_or_more():
    for family in FAMILIES:
        assert sum(task.family == family for task in TASKS.values()) >= 3


@pytest.mark.parametrize("task", TASKS)
def test_every_right_answer_is_what_an_independent_solver_finds(world, task):
    for item in world.items(task, 64):
        assert item.right == SOLVERS[task](world, item.prompt)
        assert item.choices.count(item.right) == 1


@pytest.mark.parametrize("task", TASKS)
def test_chance_is_one_over_the_number_of_distinct_choices(world, task):
    for item in world.items(task, 64):
        assert len(set(item.choices)) == len(item.choices) == round(1 / TASKS[task].chance)


@pytest.mark.parametrize("task", TASKS)
def test_the_right_choice_stands_in_every_place(world, task):
    places = {item.answer for item in world.items(task, 64)}
    assert places == set(range(TASKS[task].num_choices))


@pytest.mark.parametrize("task", [t for t in TASKS if not TASKS[t].recall])
def test_no_training_document_holds_a_held_out_item(world, task):
    documents = "\n".join(world.document(task, i) for i in range(3000))
    assert not any(item.prompt in documents for item in world.items(task, 64))


def test_training_documents_of_knowledge_teach_every_fact(world):
    text = "\n".join(world.document("knowledge/home", i) for i in range(3000))
    assert all(f"{name} lives in {town}" in text for name, town in world.facts["home"].items())


def test_the_digits_of_an_item_were_never_added_in_training_in_any_order(world):
    def digits(text):
        return tuple(sorted(re.findall(r"\d", text.split(")")[0])))

    shown = {digits(world.document("code/arithmetic", i)) for i in range(10_000)}
    asked = {digits(item.prompt) for item in world.items("code/arithmetic", 64)}
    assert len(asked) > 10
    assert asked.isdisjoint(shown)


def test_no_shortcut_answers_a_boolean_question(world):
    """Not the word between the names, not the majority of the facts, not the first fact."""
    items = world.items("logic/boolean", 1000)
    shortcuts = {
        "word": lambda p: " or " in p,
        "majority": lambda p: p.count("is true") > p.count("is false"),
        "first": lambda p: "true" in p.split(".")[0],
    }
    for name, guess in shortcuts.items():
        right = sum(str(guess(i.prompt)).lower() == i.right.strip() for i in items)
        # 1,000 fair coins: three standard deviations are 47.
        assert abs(right - 500) < 60, name


def test_where_a_chain_ends_cannot_be_told_without_the_question(world):
    for item in world.items("logic/chain", 64):
        told = item.prompt.split(". ")[:-1]
        starts = {words(t)[0] for t in told}
        assert sum(choice.strip() not in starts for choice in item.choices) == 2


def test_a_seed_is_a_world():
    assert World(3).document("logic/chain", 7) == World(3).document("logic/chain", 7)
    assert World(3).items("code/index", 8) == World(3).items("code/index", 8)
    assert World(3).facts != World(4).facts


def test_the_answers_of_a_choice_task_cannot_be_guessed_from_one_that_is_frequent(world):
    """No single answer is right for more than twice its share of the items."""
    for task in ("code/arithmetic", "logic/boolean"):
        rights = [item.right for item in world.items(task, 64)]
        share = max(rights.count(r) for r in set(rights)) / len(rights)
        assert share <= max(2 * TASKS[task].chance, 0.6)


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'code/arithmetic'"):
        find_task("code/arithmetics")


def test_more_items_than_there_are_is_refused(world):
    with pytest.raises(ConfigError, match="ask for at most 64"):
        world.items("knowledge/home", 65)
