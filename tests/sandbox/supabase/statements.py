"""The SQL of the gateway: calls a function, lists a table, inserts into one, and makes JSON of what comes back.

Arguments go in by `json_to_record` and results come out by `to_json`, as PostgREST does it: Postgres converts, not we.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from psycopg import sql

from tests.sandbox.supabase.gateway_database import SCHEMA, Function

MAX_ROWS = 1000  # Supabase's db-max-rows: longer sets are cut in silence


def call_statement(function: Function, keys: frozenset[str]) -> sql.Composed:
    """Takes the arguments as one JSON object, and answers one row: the result as JSON, and its number of rows."""
    taken = {argument.name: argument.type for argument in function.arguments if argument.name in keys}
    passed = _comma(sql.SQL("{} := {}").format(sql.Identifier(name), sql.Identifier("a", name)) for name in taken)
    call = sql.SQL("{}({})").format(sql.Identifier(SCHEMA, function.name), passed)
    # The placeholder is there without arguments, too.
    source = sql.SQL("json_to_record(%s::json) as a({}), lateral ").format(_typed(taken or {"none": "text"}))
    if function.shape == "void":
        return sql.SQL("select null, count(*) from {}{} as f").format(source, call)
    # A scalar becomes a column of a name of ours; a row keeps its columns' names, even if it has but one.
    alias, item = ("f", "row_to_json(r)") if function.shape == "object" else ("f(value)", "to_json(r.value)")
    aggregate = f"coalesce(json_agg({item}), '[]')::text" if function.returns_set else f"min({item}::text)"
    return sql.SQL("select {}, count(*) from (select f.* from {}{} as {} limit {}) as r").format(
        sql.SQL(aggregate), source, call, sql.SQL(alias), MAX_ROWS
    )


def list_statement(table: str) -> sql.Composed:
    """Answers one row: the table's rows as JSON, and how many."""
    return sql.SQL(
        "select coalesce(json_agg(row_to_json(r)), '[]')::text, count(*) from (select * from {} limit {}) as r"
    ).format(sql.Identifier(SCHEMA, table), MAX_ROWS)


def insert_statement(table: str, columns: Mapping[str, str], *, representation: bool) -> sql.Composed:
    """Inserts the row of the one placeholder, a JSON object; with `representation` it answers the row as JSON.

    Only then is the right to read the table needed.
    """
    insert = sql.SQL("insert into {} ({}) select {} from json_to_record(%s::json) as a({})").format(
        sql.Identifier(SCHEMA, table), _comma(map(sql.Identifier, columns)),
        _comma(sql.Identifier("a", name) for name in columns), _typed(columns),
    )  # fmt: skip
    if not representation:
        return insert
    return sql.SQL("with i as ({} returning *) select json_agg(row_to_json(i))::text from i").format(insert)


def _typed(columns: Mapping[str, str]) -> sql.Composed:
    """Types are from the catalogue, quoted there."""
    return _comma(sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(type_)) for name, type_ in columns.items())


def _comma(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
