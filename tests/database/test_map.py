"""The map on top of the first migration is what the database holds, and where; each object is described once."""

from __future__ import annotations

import re

from tests.conftest import Connection
from tests.sandbox.supabase.database import MIGRATIONS

FILES = {file.stem.split("_", 1)[1]: file.read_text() for file in sorted(MIGRATIONS.glob("*.sql"))}
MADE = re.compile(
    r"^create (?:or replace )?(?:function|table|view|trigger) (?:(?:public|private)\.)?(\w+)", re.MULTILINE
)
PUBLIC_AND_TABLES = """
select p.proname from pg_proc p where p.pronamespace = 'public'::regnamespace
union all select c.relname from pg_class c
  where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm', 'f')
union all select t.tgname from pg_trigger t join pg_proc p on p.oid = t.tgfoid
  where p.pronamespace = 'private'::regnamespace and not t.tgisinternal
"""
UNMARKED = """
select p.oid::regprocedure::text from pg_proc p
where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
  and coalesce(obj_description(p.oid, 'pg_proc'), '') !~ '^Call dispatcher[^:]*: '
union all select c.oid::regclass::text from pg_class c
where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind in ('r', 'p', 'v', 'm', 'f')
  and coalesce(obj_description(c.oid, 'pg_class'), '') !~ '^Call dispatcher[^:]*: '
"""


def listed() -> dict[str, list[str]]:
    """The names in the map, by file."""
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in re.findall(r"^--     (.{10,})$", next(iter(FILES.values())), re.MULTILINE):
        if line[0] != " ":
            names = found.setdefault(line.split()[0], [])
        text = re.sub(r"\((?:t|v)\)|:.*", "", line[12:])
        names += text.split()
    return found


def test_map_names_every_table_trigger_and_function(connection: Connection) -> None:
    made = sorted({name for (name,) in connection.execute(PUBLIC_AND_TABLES)})
    assert sorted({name for names in listed().values() for name in names} - {"apply_rights"}) == made


def test_map_names_the_file_of_each_object() -> None:
    assert list(listed()) == list(FILES)
    wrong = [
        f"{name} is not in {file}" for file, names in listed().items() for name in names
        if name not in MADE.findall(FILES[file])
    ]  # fmt: skip
    assert wrong == []


def test_every_function_table_and_view_stands_once() -> None:
    """A trigger has the name of its function, or one of its own."""
    everything = "\n".join(FILES.values())
    names = re.findall(r"^create (?:or replace )?(?:function|table|view) (?:\w+\.)?(\w+)", everything, re.MULTILINE)
    assert sorted(names) == sorted(set(names))
    assert re.findall(r"^drop .*|^create or replace .*", everything, re.MULTILINE) == []


def test_every_object_has_description_and_mark(connection: Connection) -> None:
    assert connection.execute(UNMARKED).fetchall() == []


def test_migrations_end_with_rights_and_have_short_lines() -> None:
    assert [name for name, text in FILES.items() if not text.endswith("\nselect private.apply_rights();\n")] == []
    long = [f"{name}: {line}" for name, text in FILES.items() for line in text.splitlines() if len(line) > 120]
    assert long == []
