"""`python -m chain notify TEXT`: send one alert."""

from __future__ import annotations

import argparse
import sys

from chain.notify import add_notify_options, post, posting_session
from runtime.hidden import hide
from runtime.options import add_logging_options, parse_options
from runtime.process import EXIT_FAILED, EXIT_OK, Parser, UserError, run


def build_parser() -> Parser:
    parser = Parser(prog="python -m chain", description="The subnet's chain, and who is told of trouble.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("notify", help="send one message, to see that the webhook works")
    verb.add_argument("text", help="the message")
    add_notify_options(verb)
    add_logging_options(verb)
    return parser


async def _send(options: argparse.Namespace) -> int:
    if options.slack_webhook_url is None:
        raise UserError("no webhook: give --slack-webhook-url or set SLACK_WEBHOOK_URL")
    async with posting_session() as session:
        reply = await post(session, options.slack_webhook_url, options.text)
    print(hide(f"{options.slack_webhook_url!r} {reply.problem or 'has the message'}"))
    return EXIT_FAILED if reply.problem else EXIT_OK


def main(argv: list[str] | None = None) -> int:
    options = parse_options(build_parser(), argv)
    return run(_send(options), options.log_level, (), options.log_json, options.log_file)


if __name__ == "__main__":
    sys.exit(main())
