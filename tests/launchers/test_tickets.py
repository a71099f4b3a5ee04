"""Tickets, leases and the events that reach them: nothing grows, nothing is lost, the last word is the last."""

import asyncio

from launchers.mailbox import Board, Mailbox
from launchers.ticket import Ticket, Tickets


async def test_a_reader_gets_the_latest_of_each_kind_and_no_more() -> None:
    mailbox = Mailbox()
    for percent in range(1000):
        mailbox.put("phase", {"progress": percent})
    mailbox.put("ready", {"ready": True})

    assert await mailbox.take(1) == [{"progress": 999}, {"ready": True}]
    assert await mailbox.take(0.01) == []


async def test_a_waiting_reader_wakes_up() -> None:
    mailbox = Mailbox()
    reading = asyncio.create_task(mailbox.take(5))
    await asyncio.sleep(0)
    mailbox.put("a", {"n": 1})

    assert await reading == [{"n": 1}]


def test_followers_hear_of_everything_until_they_leave() -> None:
    board = Board()
    staying, leaving = board.follow(), board.follow()
    board.leave(leaving)
    board.tell("one", {"n": 1})

    assert board.followers == 1
    assert staying._unread == {"one": {"n": 1}}
    assert leaving._unread == {}


async def test_those_who_wait_become_leases_and_late_ones_too() -> None:
    tickets = Tickets()
    first, person = Ticket(lease=True), Ticket(lease=False)
    tickets.add(first)
    tickets.add(person)
    assert (tickets.waiting, tickets.leases) == (2, 0)

    tickets.grant({"name": "x"})

    assert (tickets.waiting, tickets.leases) == (0, 1)
    assert person.over
    assert not first.over
    assert [event["event"] for event in await first.take(1)] == ["ready"]


async def test_a_refusal_reaches_those_who_wait_and_no_lease() -> None:
    tickets = Tickets()
    leased, waiting = Ticket(lease=True), Ticket(lease=True)
    tickets.add(leased)
    tickets.grant({})
    tickets.add(waiting)
    tickets.refuse("engine_failed", "no")

    assert waiting.over
    assert leased.held
    assert [event["event"] for event in await waiting.take(1)] == ["failed"]


async def test_a_revoked_lease_ends_and_counts_no_more() -> None:
    tickets = Tickets()
    ticket = Ticket(lease=True)
    tickets.add(ticket)
    tickets.grant({})
    tickets.ask_back("memory")
    tickets.revoke("gone")

    assert ticket.over
    assert tickets.leases == 0
    assert [event["event"] for event in await ticket.take(1)] == ["ready", "yield", "gone"]


def test_the_last_lease_to_go_begins_the_idle_time() -> None:
    tickets = Tickets()
    first, second = Ticket(lease=True), Ticket(lease=True)
    for ticket in (first, second):
        tickets.add(ticket)
    tickets.grant({})
    before = tickets.idle_since
    tickets.release(first)
    assert tickets.idle_since == before

    tickets.release(second)

    assert tickets.idle_since > before
