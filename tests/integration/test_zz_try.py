import time
from datetime import datetime
def test_a(connection, set_clock, connect, database_url):
    t=connection.execute("select private.clock()").fetchone()[0]
    set_clock(3600); 
    u=connection.execute("select private.clock()").fetchone()[0]
    print(u-t)
    c=connect("authenticator"); print(c.execute("select current_user, version()").fetchone())
    c.execute("set role service_role")
    print(c.execute("select public.call_job_stats()").fetchone())
    print(connection.execute("select proowner::regrole, proacl from pg_proc where proname='clock'").fetchall())
def test_b(postgres, template_database):
    from tests.sandbox import database as d
    for i in range(8):
        t=time.time(); d.create_database(postgres, f"q{i}", template_database); a=time.time(); 
        import psycopg
        with psycopg.connect(postgres.url(database=f"q{i}")) as c: c.execute("select 1")
        b=time.time()
        d.drop_database(postgres, f"q{i}"); print(f"create {a-t:.3f} use {b-a:.3f} drop {time.time()-b:.3f}")
