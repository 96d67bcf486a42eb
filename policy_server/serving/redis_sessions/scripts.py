"""The Lua scripts by which a session changes: Redis runs each as a whole, or not at all.

A session is a hash, which ends by Redis' own expiry:

- `record`: what is kept of it (`records`); `policy`; `groups`, one name a line;
- `owner`, `until`: the token of the request that has it, and when that loses it unless it asks for
  more time (in ms of Redis' clock, as all times are), so that a process that dies frees it;
- `queue`: the tokens of the requests that wait, in their order, each with the time until which it
  counts unless it asks again;
- `done`: the token of the last request that changed it, so that a command may be sent twice.

A group is a sorted set of sessions by the time of their expiry, in which they are counted: those of
a policy (`:policy`), those that a version answers (`policy:version:digest`), those that a client
began (`@client`), and those whose last answer is long, by the power of two that holds its bytes
(`!15` for up to 32 KiB). All scripts take one key and work the others out: they are for one Redis,
not for the slots of a Redis Cluster.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "ADD",
    "COUNT",
    "GROUPS",
    "KEEP",
    "LEAVE",
    "REMOVE",
    "REMOVE_DAMAGED",
    "REMOVE_FREE",
    "RENEW",
    "SWEEP",
    "TAKE",
    "Outcome",
    "Script",
    "session_key",
]

_PREFIX = "policy-server:"
GROUPS = f"{_PREFIX}groups"


class Outcome(IntEnum):
    """The first number that a script answers, or its only one."""

    UNKNOWN = 0
    DONE = 1
    WAITING = 2
    LOST = 3
    FULL = 4
    FOREIGN = 5
    CLIENT_FULL = 6
    CROWDED = 7
    DAMAGED = 8


@dataclass(frozen=True)
class Script:
    """A Lua script.

    Attributes:
        text: its Lua.
        digest: its name once Redis has seen it.
        takes_room: whether a full Redis refuses it.
    """

    text: bytes
    digest: bytes
    takes_room: bool

    @classmethod
    def of(cls, text: str, *, takes_room: bool = False) -> Script:
        """Return the script of a text, which may use what all of them do.

        Args:
            text: its Lua.
            takes_room: see the class.
        """
        whole = (_COMMON + text).encode()
        # SHA-1 is Redis' name for a script, and no secret.
        digest = hashlib.sha1(whole, usedforsecurity=False).hexdigest().encode()
        return cls(whole, digest, takes_room)


def session_key(session_id: str) -> str:
    """Return the key of a session.

    Args:
        session_id: its name.
    """
    return f"{_PREFIX}session:{session_id}"


_COMMON = f"""
local known_groups = '{GROUPS}'
local function members(group) return '{_PREFIX}group:' .. group end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function touch(session, groups, lasts)
  redis.call('PEXPIRE', session, lasts)
  for group in string.gmatch(groups, '[^\\n]+') do
    if redis.call('ZADD', members(group), now + lasts, session) == 1 then
      redis.call('SADD', known_groups, group)
    end
  end
end
local function forget(session, groups)
  for group in string.gmatch(groups, '[^\\n]+') do redis.call('ZREM', members(group), session) end
end
local function is_hash(session) return redis.call('TYPE', session).ok == 'hash' end
-- The requests that wait for a session; nil where another program has written something else.
local function waiting_in(packed)
  if not packed then return {{}} end
  local is_packed, queue = pcall(cmsgpack.unpack, packed)
  if not is_packed or type(queue) ~= 'table' then return nil end
  for _, waiting in ipairs(queue) do
    if type(waiting) ~= 'table' then return nil end
    if type(waiting[1]) ~= 'string' or type(waiting[2]) ~= 'number' then return nil end
  end
  return queue
end
-- The fields of a session, and those who wait for it; nil and the outcome where it has none, or
-- another program has written something else.
local fields = {{'record', 'policy', 'owner', 'until', 'queue', 'groups'}}
local function read(session)
  if redis.call('EXISTS', session) == 0 then return nil, {{0}} end
  if not is_hash(session) then return nil, {{8}} end
  local found = redis.call('HMGET', session, unpack(fields))
  local queue, lasts = waiting_in(found[5]), tonumber(found[4] or 0)
  -- Of a number that is none, `tonumber` gives NaN, which equals nothing.
  local is_sound = queue and lasts and lasts == lasts and (found[4] or not found[3])
  if not (is_sound and found[1] and found[2] and found[6]) then return nil, {{8}} end
  return found, queue
end
"""

# A session's key; record, policy, groups, most sessions, idle time, the client's group or nothing,
# most sessions of that -> outcome, sessions
ADD = Script.of(
    """
local record, policy, groups, most, idle, client, most_of_client = unpack(ARGV)
if redis.call('EXISTS', KEYS[1]) == 1 then return {1, 0} end
if client ~= '' and tonumber(most_of_client) > 0 then
  local own = redis.call('ZCOUNT', members(client), now, '+inf')
  if own >= tonumber(most_of_client) then return {6, own} end
end
local open = 0
for _, group in ipairs(redis.call('SMEMBERS', known_groups)) do
  if string.sub(group, 1, 1) == ':' then
    open = open + redis.call('ZCOUNT', members(group), now, '+inf')
  end
end
if open >= tonumber(most) then return {4, open} end
redis.call('HSET', KEYS[1], 'record', record, 'policy', policy, 'groups', groups)
touch(KEYS[1], groups, idle)
return {1, open + 1}
""",
    takes_room=True,
)

# A session's key; token, policy, lease, idle time, time that a waiting one counts, most of those ->
# outcome, record or the policy that it is of or how many wait
TAKE = Script.of(
    """
local token, policy, lease, idle, counts, most = unpack(ARGV)
local found, waiting_before = read(KEYS[1])
if not found then return waiting_before end
local record, owner, queue = found[1], found[3], {}
if found[2] ~= policy then return {5, found[2]} end
if owner == token then return {1, record} end
-- No time that somebody was given is longer than it is from now: where Redis' clock was set back,
-- it would last until the clock is there again.
local lasts, is_set_back = math.min(tonumber(found[4] or 0), now + lease), false
if owner and lasts < tonumber(found[4]) then redis.call('HSET', KEYS[1], 'until', lasts) end
local own
for _, waiting in ipairs(waiting_before) do
  if waiting[2] > now + counts then waiting[2], is_set_back = now + counts, true end
  if waiting[1] == token then own = waiting end
  if waiting[1] == token or waiting[2] > now then table.insert(queue, waiting) end
end
local is_free = not owner or lasts <= now
if is_free and (not queue[1] or queue[1] == own) then
  redis.call('HSET', KEYS[1], 'owner', token, 'until', now + lease)
  if own then table.remove(queue, 1) end
  if queue[1] then
    redis.call('HSET', KEYS[1], 'queue', cmsgpack.pack(queue))
  elseif found[5] then
    redis.call('HDEL', KEYS[1], 'queue')
  end
  touch(KEYS[1], found[6], lease + idle)
  return {1, record}
end
if not own and #queue >= tonumber(most) then
  if is_set_back then redis.call('HSET', KEYS[1], 'queue', cmsgpack.pack(queue)) end
  return {7, #queue}
end
if own then own[2] = now + counts else table.insert(queue, {token, now + counts}) end
redis.call('HSET', KEYS[1], 'queue', cmsgpack.pack(queue))
return {2}
""",
    takes_room=True,
)

# A session's key; token, record, groups, idle time, the power of two of a long answer or nothing,
# most bytes of those -> outcome, which is that of a full store where the long answer has no place
KEEP = Script.of(
    """
local token, record, groups, idle, power, most = unpack(ARGV)
if not is_hash(KEYS[1]) then return 0 end
local found = redis.call('HMGET', KEYS[1], 'owner', 'done', 'groups')
if found[2] == token then return 1 end
if not found[3] then return 0 end
if found[1] ~= token then return 3 end
if power ~= '' and found[3] ~= groups then
  local bytes = 2 ^ tonumber(power)
  for at = 15, 40 do
    bytes = bytes + 2 ^ at * redis.call('ZCOUNT', members('!' .. at), now, '+inf')
  end
  if bytes > tonumber(most) then return 4 end
end
redis.call('HSET', KEYS[1], 'record', record, 'groups', groups, 'done', token)
redis.call('HDEL', KEYS[1], 'owner', 'until')
if found[3] ~= groups then forget(KEYS[1], found[3]) end
touch(KEYS[1], groups, idle)
return 1
""",
    takes_room=True,
)

# A session's key; policy -> outcome, and the policy that it is of. It takes no room, unlike a turn.
REMOVE_FREE = Script.of("""
local found, queue = read(KEYS[1])
if not found then return queue end
if found[2] ~= ARGV[1] then return {5, found[2]} end
if found[3] and tonumber(found[4]) > now then return {2} end
for _, waiting in ipairs(queue) do
  if waiting[2] > now then return {2} end
end
redis.call('DEL', KEYS[1])
forget(KEYS[1], found[6])
return {1}
""")

# A session's key. Its groups may be damaged too.
REMOVE_DAMAGED = Script.of("""
redis.call('DEL', KEYS[1])
for _, group in ipairs(redis.call('SMEMBERS', known_groups)) do forget(KEYS[1], group) end
return {1}
""")

# A session's key; token -> outcome
REMOVE = Script.of("""
if not is_hash(KEYS[1]) then return 1 end
local found = redis.call('HMGET', KEYS[1], 'owner', 'groups')
if not found[2] then return 1 end
if found[1] ~= ARGV[1] then return 3 end
redis.call('DEL', KEYS[1])
forget(KEYS[1], found[2])
return 1
""")

# A session's key; token, idle time. The request has done nothing, or does not wait any more.
LEAVE = Script.of("""
local token, idle = unpack(ARGV)
local found, waiting_before = read(KEYS[1])
if not found then return 1 end
if found[3] == token then
  redis.call('HDEL', KEYS[1], 'owner', 'until')
  touch(KEYS[1], found[6], idle)
elseif found[5] then
  local queue = {}
  for _, waiting in ipairs(waiting_before) do
    if waiting[1] ~= token then table.insert(queue, waiting) end
  end
  redis.call('HSET', KEYS[1], 'queue', cmsgpack.pack(queue))
end
return 1
""")

# A session's key; token, lease, idle time
RENEW = Script.of("""
local token, lease, idle = unpack(ARGV)
local found = read(KEYS[1])
if not found or found[3] ~= token then return 3 end
redis.call('HSET', KEYS[1], 'until', now + lease)
touch(KEYS[1], found[6], lease + idle)
return 1
""")

# The key of all groups; a group -> sessions
COUNT = Script.of("""
return redis.call('ZCOUNT', members(ARGV[1]), now, '+inf')
""")

# The key of all groups -> group, sessions, those that have expired since the last time, group ...
SWEEP = Script.of("""
local found = {}
for _, group in ipairs(redis.call('SMEMBERS', known_groups)) do
  local expired = redis.call('ZREMRANGEBYSCORE', members(group), '-inf', '(' .. now)
  local open = redis.call('ZCARD', members(group))
  if open == 0 then redis.call('SREM', known_groups, group) end
  table.insert(found, group)
  table.insert(found, open)
  table.insert(found, expired)
end
return found
""")
