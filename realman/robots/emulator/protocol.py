"""Dispatch of requests over the tables in `queries` and `commands`."""

import logging

from realman.robots.emulator import commands
from realman.robots.emulator import queries
from realman.robots.emulator.controller import Controller
from realman.robots.emulator.wire import Message

logger = logging.getLogger(__name__)


def answer(controller: Controller, request: Message) -> Message | None:
    """Carry out one request.

    Returns:
        The reply, or None where a controller stays silent: the command is unknown, the request is malformed, or the
        command has no reply.
    """
    command = request.get("command")
    if not isinstance(command, str):
        logger.warning("emulator: a request without 'command': %s", request)
        return None
    try:
        if command in queries.QUERIES:
            return queries.QUERIES[command](controller, request)
        if command in commands.SETTERS:
            return commands.set_value(controller, command, request)
        if command in commands.STREAMS:
            return commands.stream(controller, command, request)
    except (IndexError, KeyError, TypeError, ValueError) as e:
        logger.warning("emulator: %s is malformed (%s: %s)", request, type(e).__name__, e)
        return None
    logger.info("emulator: command '%s' is not emulated", command)
    return None
