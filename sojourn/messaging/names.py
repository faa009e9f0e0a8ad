"""The names of the tasks that programs call, and of those that serve a call."""

MIGRATE = "sojourn.migrate"
MIGRATE_MANY = "sojourn.migrate_many"
DRAIN = "sojourn.drain"
REVOKE = "sojourn.revoke"

#: What programs call.
CALLS = (MIGRATE, MIGRATE_MANY, DRAIN)

#: The header of a message with who asks, as they claim; it is signed with the rest.
BY = "sojourn-by"
