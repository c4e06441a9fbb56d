"""What changes behind a job's back, seen by the whole program: its user's phone, and the database itself."""

from __future__ import annotations

import uuid

from tests.e2e.conftest import World


def rewind(world: World, job: int) -> None:
    """The job as a backup of before its call has it, restored elsewhere."""
    with world.database.transaction():
        world.database.execute("set local session_replication_role = replica")
        world.database.execute("delete from public.outbound_call_attempts where job_id = %s", (job,))
        world.database.execute(
            "update public.outbound_call_jobs set status = 'queued', attempts = 0, due_at = now(), finished_at = null,"
            " qualification = null, database_id = 'another', dedupe_window = tstzrange(created_at, null) where id = %s",
            (job,),
        )


def test_corrected_phone_rings_after_a_busy_call(world: World) -> None:
    wrong, right, user = world.number(), world.number(), uuid.uuid4()
    world.behave(to=wrong, outcome="busy")
    world.database.execute("insert into auth.users (id, phone) values (%s, %s)", (user, wrong[1:]))
    world.until(lambda: world.calls(wrong))
    world.database.execute("update auth.users set phone = %s where id = %s", (right[1:], user))
    (job,) = world.rows("select id from public.outbound_call_jobs where user_id = %s", user)
    assert world.until_status(job["id"], "completed", "failed")["status"] == "completed"
    assert [call["status"] for call in world.calls(right)] == ["completed"]


def test_restored_database_calls_nobody_again(world: World) -> None:
    called, other = world.number(), world.number()
    world.until_status(old := world.insert_job(called), "completed")
    rewind(world, old)
    world.until(lambda: world.rows("select from private.call_settings where paused_by = 'restore'"))
    new = world.insert_job(other)
    assert world.calls(other) == []
    world.rows("select public.confirm_restore()")
    assert {world.until_status(job, "completed", "failed")["status"] for job in (old, new)} == {"completed"}
    assert (len(world.calls(called)), len(world.calls(other))) == (1, 1)
