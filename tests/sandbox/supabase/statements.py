"""The SQL of the gateway: calls a function, lists a table, inserts into one, and makes JSON of what comes back.

Arguments go in by `json_to_record` and results come out by `to_json`, as PostgREST does it: Postgres converts, not we.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from tests.sandbox.supabase.gateway_database import SCHEMA, Function
from tests.sandbox.supabase.requests import Payload

MAX_ROWS = 1000  # Supabase's db-max-rows: longer sets are cut in silence


@dataclass(frozen=True)
class Call:
    """The FROM item that calls a function, what has to stand before it, and the values of its placeholders."""

    source: sql.Composable
    function: sql.Composable
    values: list[str]


def _type(qualified: str) -> sql.SQL:
    return sql.SQL(qualified)  # from the catalogue, quoted there


def _function_call(function: Function, arguments: Iterable[sql.Composable]) -> sql.Composable:
    return sql.SQL("{}({})").format(sql.Identifier(SCHEMA, function.name), _comma(arguments))


def call_with_json(function: Function, payload: Payload) -> Call:
    """Arguments out of a JSON object, by json_to_record, as PostgREST does: of an array, the first one."""
    taken = [argument for argument in function.arguments if argument.name in payload.keys]
    if not taken:
        return Call(sql.SQL(""), _function_call(function, []), [])
    source = sql.SQL("json_to_record({}) as a({}), lateral ").format(
        sql.SQL("%s::json -> 0" if payload.many else "%s::json"),
        _comma(sql.SQL("{} {}").format(sql.Identifier(a.name), _type(a.type)) for a in taken),
    )
    passed = (sql.SQL("{} := {}").format(sql.Identifier(a.name), sql.Identifier("a", a.name)) for a in taken)
    return Call(source, _function_call(function, passed), [payload.text])


def call_with_text(function: Function, query: dict[str, str]) -> Call:
    """Arguments out of the query string, each through its type's text input."""
    taken = [argument for argument in function.arguments if argument.name in query]
    passed = (sql.SQL("{} := %s::{}").format(sql.Identifier(a.name), _type(a.type)) for a in taken)
    return Call(sql.SQL(""), _function_call(function, passed), [query[a.name] for a in taken])


def call_statement(function: Function, call: Call, *, as_array: bool, limit: int | None) -> sql.Composed:
    """Answers one row: the JSON, how many rows are in it, and how many there were before any limit."""
    if function.shape == "void":
        return sql.SQL("select null, count(*), count(*) from {}{} as f").format(call.source, call.function)
    # A scalar becomes a column of a name of ours; a row keeps its columns' names, even if it has but one.
    alias, item = ("f", "row_to_json(r)") if function.shape == "object" else ("f(value)", "to_json(r.value)")
    return sql.SQL(
        "with called as materialized (select f.* from {}{} as {}), r as (select * from called limit {}) "
        "select {}, count(*), (select count(*) from called) from r"
    ).format(
        call.source, call.function, sql.SQL(alias), _rows(limit),
        sql.SQL("coalesce(json_agg({0}), '[]')::text" if as_array else "min({0}::text)").format(sql.SQL(item)),
    )  # fmt: skip


def list_statement(table: sql.Identifier, columns: list[str] | None, limit: int | None) -> sql.Composed:
    """Answers one row: the table's rows as JSON, and how many. `columns`: None is all of them."""
    wanted = (
        sql.SQL("*") if columns is None else _comma(sql.SQL("{}.{}").format(table, sql.Identifier(c)) for c in columns)
    )
    return sql.SQL(
        "select coalesce(json_agg(row_to_json(r)), '[]')::text, count(*) from (select {} from {} limit {}) as r"
    ).format(wanted, table, _rows(limit))


def insert_statement(
    table: sql.Identifier, columns: dict[str, str], *, many: bool, representation: bool
) -> sql.Composed:
    """Inserts what the one placeholder brings as JSON; with `representation` it answers the rows as JSON.

    Only then is the right to read the table needed.
    """
    insert = sql.SQL("insert into {} ({}) select {} from json_to_recordset({}) as a({})").format(
        table,
        _comma(sql.Identifier(name) for name in columns),
        _comma(sql.Identifier("a", name) for name in columns),
        sql.SQL("%s::json" if many else "json_build_array(%s::json)"),
        _comma(sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in columns.items()),
    )
    if not representation:
        return insert
    return sql.SQL("with i as ({} returning *) select coalesce(json_agg(row_to_json(i)), '[]')::text from i").format(
        insert
    )


def _comma(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def _rows(limit: int | None) -> sql.Literal:
    return sql.Literal(MAX_ROWS if limit is None else min(limit, MAX_ROWS))
