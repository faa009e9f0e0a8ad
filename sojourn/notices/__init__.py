"""After the end: programs and web addresses that a host calls when a migration has ended.

A **notice** is one end of one migration. What is still to be delivered is *owed*, in a file of the
host that recorded the end (``outbox``), from where a process of its own takes it
(``workers.courier``): neither a worker that dies nor a Redis that is away loses a notice, and no
migration waits for one.
"""
