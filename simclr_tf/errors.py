"""The one exception for what a user can put right."""


class UserError(Exception):
    """A known problem, told in one line: what was wrong, what was found, what to do.

    The command line prints the message alone and exits with code 1. Anything else that is raised is a bug and keeps
    its traceback.
    """


class UsageError(UserError):
    """A command line that cannot be meant as written; exits with code 2."""
