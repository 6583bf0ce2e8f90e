"""Names, ancestors, and the registry's fold."""

import pytest

from spl.core.record import namespace
from spl.core.record.namespace import REGISTRY_EMPTY, Namespace, NamespaceError


@pytest.mark.parametrize("name", ["default", "a", "org/project", "a/b/c/d", "0-_x", "a" * 63])
def test_good_names(name: str) -> None:
    assert namespace.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "/", "a/", "/a", "A", "a b", "a/b/c/d/e", "a" * 64, "-a", "_a", "a//b", None, 7, "a\n"]
)
def test_bad_names_are_refused(name: object) -> None:
    with pytest.raises(NamespaceError) as caught:
        namespace.check_name(name)
    assert caught.value.code == "bad-field"


def test_a_name_is_usable_while_all_above_it_are_active() -> None:
    registry = REGISTRY_EMPTY
    assert namespace.usable(registry, "default") == "default"
    for name in ("org", "org/web"):
        registry = namespace.fold(registry, {"kind": namespace.KIND_CREATE, "name": name})
    assert namespace.usable(registry, "org/web") == "org/web"
    registry = namespace.fold(registry, {"kind": namespace.KIND_STATE, "name": "org", "state": "archived"})
    with pytest.raises(NamespaceError) as caught:
        namespace.usable(registry, "org/web")
    assert caught.value.code == "namespace-rejected"
    assert "org is archived" in caught.value.message
    assert caught.value.hint == "spl namespace create org"


def test_each_part_of_a_name_must_be_active_itself() -> None:
    registry = REGISTRY_EMPTY
    assert not Namespace("org").shared
    for name in ("org", "org/web"):
        with pytest.raises(NamespaceError) as caught:
            namespace.usable(registry, name)
        assert caught.value.hint == f"spl namespace create {name}"
        registry = namespace.fold(registry, {"kind": namespace.KIND_CREATE, "name": name})
        assert namespace.usable(registry, name) == name
        archived = namespace.fold(registry, {"kind": namespace.KIND_STATE, "name": name, "state": "archived"})
        with pytest.raises(NamespaceError, match=f"{name} is archived"):
            namespace.usable(archived, name)


@pytest.mark.parametrize("body", [
    {"kind": namespace.KIND_STATE}, {"kind": namespace.KIND_STATE, "state": "odd"},
    {"kind": namespace.KIND_STATE, "state": True}, {"kind": namespace.KIND_SHARE},
    {"kind": namespace.KIND_SHARE, "shared": "yes"}, {"kind": namespace.KIND_SHARE, "shared": 1},
    {"kind": "other", "state": "archived", "shared": False}, {"state": "archived", "shared": False},
])  # fmt: skip
def test_a_body_of_another_form_changes_nothing_of_a_namespace(body: dict[str, object]) -> None:
    registry = namespace.fold(REGISTRY_EMPTY, {"kind": namespace.KIND_CREATE, "name": "org", "shared": True})
    assert namespace.fold(registry, {**body, "name": "org"}) is registry


def test_the_missing_ancestor_is_named_with_the_command_that_makes_it() -> None:
    with pytest.raises(NamespaceError) as caught:
        namespace.usable(REGISTRY_EMPTY, "music/jazz")
    assert caught.value.hint == "spl namespace create music"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"kind": namespace.KIND_CREATE},
        {"kind": namespace.KIND_CREATE, "name": 7},
        {"kind": "other", "name": "a"},
        {"kind": namespace.KIND_STATE, "name": "nobody", "state": "archived"},
        {"kind": namespace.KIND_STATE, "name": "default", "state": "odd"},
        {"kind": namespace.KIND_SHARE, "name": "default", "shared": "yes"},
        {"kind": namespace.KIND_SHARE, "name": "default", "shared": False},
        {"kind": namespace.KIND_STATE, "name": "default", "state": "archived"},
        {"kind": namespace.KIND_CREATE, "name": "default", "shared": False},
        {"kind": namespace.KIND_DELETE, "name": "default"},
        {"kind": namespace.KIND_DELETE, "name": "nobody"},
    ],
)
def test_the_fold_skips_what_it_cannot_use(body: dict[str, object]) -> None:
    assert namespace.fold(REGISTRY_EMPTY, body) == REGISTRY_EMPTY


def test_sharing_is_a_mark_that_can_be_taken_back() -> None:
    registry = namespace.fold(REGISTRY_EMPTY, {"kind": namespace.KIND_CREATE, "name": "org", "shared": True})
    assert registry["org"].shared
    registry = namespace.fold(registry, {"kind": namespace.KIND_SHARE, "name": "org", "shared": False})
    assert not registry["org"].shared


def test_shareable_is_usable_and_marked() -> None:
    registry = REGISTRY_EMPTY
    for name, shared in (("org", False), ("org/web", True), ("org/old", True)):
        registry = namespace.fold(registry, {"kind": namespace.KIND_CREATE, "name": name, "shared": shared})
    registry = namespace.fold(registry, {"kind": namespace.KIND_STATE, "name": "org/old", "state": "archived"})
    assert [name for name in sorted(registry) if namespace.shareable(registry, name)] == ["default", "org/web"]
    assert not namespace.shareable(registry, "nobody")
    assert [item.name for item in namespace.children(registry, "org")] == ["org/old", "org/web"]
    assert [item.state for item in namespace.children(registry, "org")] == ["archived", "active"]
    registry = namespace.fold(registry, {"kind": namespace.KIND_STATE, "name": "org", "state": "archived"})
    assert not namespace.shareable(registry, "org/web"), "one above it is archived"


def test_a_deleted_one_is_gone_and_can_be_made_anew() -> None:
    registry = namespace.fold(REGISTRY_EMPTY, {"kind": namespace.KIND_CREATE, "name": "org", "shared": True})
    registry = namespace.fold(registry, {"kind": namespace.KIND_DELETE, "name": "org"})
    assert registry == REGISTRY_EMPTY
    registry = namespace.fold(registry, {"kind": namespace.KIND_CREATE, "name": "org"})
    assert not registry["org"].shared
