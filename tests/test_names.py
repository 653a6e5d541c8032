"""Classes by name: what is found, and what a user reads where nothing is."""

from abc import ABC, abstractmethod

import pytest

from hpc_maml.algorithms import ALGORITHMS, Algorithm, algorithm_class
from hpc_maml.errors import InputError
from hpc_maml.names import find_class
from hpc_maml.policies import NETWORKS, Network, network_class


class Animal(ABC):
    @abstractmethod
    def walk(self): ...

    @abstractmethod
    def eat(self): ...


class Dog(Animal):
    def walk(self): ...

    def eat(self): ...


class Unfinished(Animal): ...


class Eater(Animal):
    def eat(self): ...


class Stone: ...


def make_dog():
    return Dog()


TABLE = {"dog": "test_names:Dog", "cat": "no_such_module:Cat"}


def find(name):
    return find_class("animal", name, TABLE, Animal)


def test_a_class_of_the_table_and_one_of_ones_own():
    assert find("dog") is Dog
    assert find("test_names:Dog") is Dog


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dogg",
            "There is no animal 'dogg' (did you mean 'dog'?); there are dog, cat, and module:Class "
            "for one of your own.",
        ),
        (
            "elephant",
            "There is no animal 'elephant'; there are dog, cat, and module:Class for one of your "
            "own.",
        ),
        (
            "cat",
            "The module of the animal 'cat' cannot be imported: No module named 'no_such_module'.",
        ),
        (
            "no_such_module:Cat",
            "The module of the animal 'no_such_module:Cat' cannot be imported: No module named "
            "'no_such_module'.",
        ),
        ("test_names:Dogs", "The module test_names has no 'Dogs' (did you mean 'Dog'?)."),
        ("test_names:Xyzzy", "The module test_names has no 'Xyzzy'."),
        (
            "test_names:Stone",
            "test_names:Stone cannot be used as animal: it is not a subclass of Animal.",
        ),
        (
            "test_names:make_dog",
            "test_names:make_dog cannot be used as animal: it is not a subclass of Animal.",
        ),
        (
            "test_names:Unfinished",
            "test_names:Unfinished cannot be used as animal: it has no eat and no walk.",
        ),
        ("test_names:Eater", "test_names:Eater cannot be used as animal: it has no walk."),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name, message):
    with pytest.raises(InputError) as caught:
        find(name)
    assert str(caught.value) == message


def test_names_without_a_module_or_a_class_are_one_sentence():
    for name in (":Dog", "test_names:", "..:Dog", ".test_names:Dog"):
        with pytest.raises(InputError) as caught:
            find(name)
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("class Dog(", "SyntaxError: '(' was never closed (broken.py, line 1)"),
    ],
)
def test_a_module_of_a_user_that_cannot_be_imported(source, reason, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        find("broken:Dog")
    if reason.startswith("Zero"):
        reason += f", raised in {tmp_path / 'broken.py'}, line 1"
    assert str(caught.value) == (
        f"The module of the animal 'broken:Dog' cannot be imported: {reason}."
    )


@pytest.mark.parametrize(
    ("table", "base", "find_one"),
    [(ALGORITHMS, Algorithm, algorithm_class), (NETWORKS, Network, network_class)],
)
def test_every_name_of_the_tables_is_a_class(table, base, find_one):
    for name, path in table.items():
        found = find_one(name)
        assert issubclass(found, base)
        assert path == f"{found.__module__}:{found.__qualname__}"


def test_what_a_user_reads_of_algorithms_and_policies():
    with pytest.raises(InputError, match=r"There is no algorithm 'pro_mp' \(did you mean 'promp'"):
        algorithm_class("pro_mp")
    with pytest.raises(InputError, match="There is no policy 'lstm'; there are mlp, gru, and"):
        network_class("lstm")
    with pytest.raises(InputError, match="it is not a subclass of Algorithm"):
        algorithm_class("test_names:Dog")
