"""The RedisBackend's scripts in Lua: each is run whole or not at all.

The keys of a conversation: `meta` (hash), `turns` (list of JSON), `lease` (token and tenant),
`line` (the turn queue: a list of tokens), `waits` (when each of them runs out). Those of a tenant:
`expiries` (sorted set) and `sizes` (hash) by conversation, `total` (bytes). A response is all in
its `meta`, and has a lease while it runs. Times are Redis's own, in milliseconds.
"""

NOT_FOUND = -1
CONVERSATION_FULL = -2
STORE_FULL = -3
LEASE_LOST = -4
PLACE_LOST = -5

PRELUDE = r"""
local meta, turns, lease, line, waits, expiries, sizes, total, tenants = unpack(KEYS)
local id, tenant, token = ARGV[1], ARGV[2], ARGV[3]
local lease_ms, ttl_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local max_items, max_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
local ours = token .. '\n' .. tenant

local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function is_known()
    local held = redis.call('GET', lease)
    return redis.call('HGET', meta, 'tenant') == tenant
        or (held and string.sub(held, #token + 2) == tenant)
end

local function key_of(key, other)
    return string.sub(key, 1, #key - #id) .. other
end

local function erase(id, meta, turns)
    redis.call('DECRBY', total, redis.call('HGET', sizes, id) or 0)
    redis.call('HDEL', sizes, id)
    redis.call('ZREM', expiries, id)
    redis.call('DEL', meta, turns)
end

-- Erases the tenant's responses that were not used for longest, if that is enough.
local function lack_of_bytes(num_bytes)
    local missing = tonumber(redis.call('GET', total) or 0) + num_bytes - max_bytes
    local rank, erased = 0, {}
    while missing > 0 do
        local oldest = redis.call('ZRANGE', expiries, rank, rank)[1]
        if not oldest then return -3 end
        local runs = redis.call('EXISTS', key_of(lease, oldest)) == 1
        if string.sub(oldest, 1, 5) == 'resp_' and not runs then
            missing = missing - (redis.call('HGET', sizes, oldest) or 0)
            table.insert(erased, oldest)
        end
        rank = rank + 1
    end
    for _, each in ipairs(erased) do erase(each, key_of(meta, each), key_of(turns, each)) end
    return 0
end

local function lack_of_room(num_bytes)
    if tonumber(redis.call('HGET', meta, 'num_items') or 0) + 2 > max_items then return -2 end
    return lack_of_bytes(num_bytes)
end

local function keep()
    redis.call('PEXPIRE', meta, ttl_ms)
    redis.call('PEXPIRE', turns, ttl_ms)
    redis.call('ZADD', expiries, now() + ttl_ms, id)
end

local function advance()
    local ahead = redis.call('EXISTS', lease)
    redis.call('HSET', waits, token, now() + lease_ms)
    for _, other in ipairs(redis.call('LRANGE', line, 0, -1)) do
        if other == token then break end
        if tonumber(redis.call('HGET', waits, other) or 0) < now() then
            redis.call('LREM', line, 1, other)
            redis.call('HDEL', waits, other)
        else
            ahead = ahead + 1
        end
    end
    redis.call('PEXPIRE', line, lease_ms)
    redis.call('PEXPIRE', waits, lease_ms)
    if ahead > 0 then return ahead end
    local lack = lack_of_room(1)
    if lack < 0 then return lack end
    redis.call('LREM', line, 1, token)
    redis.call('HDEL', waits, token)
    redis.call('SET', lease, ours, 'NX', 'PX', lease_ms)
    if redis.call('EXISTS', meta) == 1 then keep() end
    return 0
end
"""

CREATE = r"""
local lack = lack_of_room(1)
if lack < 0 then return lack end
redis.call('SET', lease, ours, 'NX', 'PX', lease_ms)
return 0
"""

ENTER = r"""
if redis.call('GET', lease) == ours then return 0 end
if not is_known() then return -1 end
if redis.call('HEXISTS', waits, token) == 0 then redis.call('RPUSH', line, token) end
return advance()
"""

ADVANCE = r"""
if redis.call('GET', lease) == ours then return 0 end
if not is_known() then return -1 end
if redis.call('HEXISTS', waits, token) == 0 then return -5 end
return advance()
"""

LEAVE = r"""
redis.call('LREM', line, 1, token)
redis.call('HDEL', waits, token)
if redis.call('GET', lease) == ours then redis.call('DEL', lease) end
return 0
"""

RENEW = r"""
if redis.call('GET', lease) ~= ours then return -4 end
redis.call('PEXPIRE', lease, lease_ms)
return 0
"""

# A commit whose answer was lost on the way is sent again, and must not be stored twice.
COMMIT = r"""
local turn, num_bytes, used_at = ARGV[8], tonumber(ARGV[9]), ARGV[10]
local response, response_bytes = ARGV[11], tonumber(ARGV[14])
if redis.call('HGET', meta, 'last') == token then return 0 end
if redis.call('GET', lease) ~= ours then return -4 end
local lack = lack_of_room(num_bytes + response_bytes)
if lack < 0 then return lack end
if response ~= '' then
    local key = key_of(meta, response)
    redis.call('HSET', key, 'tenant', tenant, 'previous', '', 'turn', ARGV[12], 'body', ARGV[13])
    redis.call('PEXPIRE', key, ttl_ms)
    redis.call('ZADD', expiries, now() + ttl_ms, response)
    redis.call('HSET', sizes, response, response_bytes)
    redis.call('INCRBY', total, response_bytes)
end
redis.call('RPUSH', turns, turn)
redis.call('HSET', meta, 'tenant', tenant, 'used_at', used_at, 'last', token)
redis.call('HSETNX', meta, 'created_at', used_at)
if ARGV[15] ~= '' then redis.call('HSET', meta, 'labels', ARGV[15]) end
redis.call('HINCRBY', meta, 'num_items', 2)
redis.call('HINCRBY', sizes, id, num_bytes)
redis.call('INCRBY', total, num_bytes)
redis.call('SADD', tenants, tenant)
keep()
redis.call('DEL', lease)
return 0
"""

LABEL = r"""
local labels, used_at = ARGV[8], ARGV[9]
if redis.call('HGET', meta, 'tenant') ~= tenant then return -1 end
local grown = #labels - #(redis.call('HGET', meta, 'labels') or '')
local lack = lack_of_bytes(grown)
if lack < 0 then return lack end
redis.call('HSET', meta, 'labels', labels, 'used_at', used_at)
redis.call('HINCRBY', sizes, id, grown)
redis.call('INCRBY', total, grown)
keep()
return 0
"""

DELETE = r"""
if not is_known() then return -1 end
erase(id, meta, turns)
redis.call('DEL', lease, line, waits)
return 0
"""

# What has ended stays so when its answer was lost on the way and it is sent again.
RESPOND = r"""
local previous, body, num_bytes, step = ARGV[8], ARGV[10], tonumber(ARGV[11]), ARGV[12]
local held = redis.call('GET', lease)
if redis.call('HGET', meta, 'last') == token then return 1 end
if step == 'cancel' and not (held and is_known()) then return 0 end
if (step == 'update' or step == 'end') and held ~= ours then return -4 end
local other = previous
while other ~= '' and redis.call('HGET', key_of(meta, other), 'tenant') == tenant do
    redis.call('PEXPIRE', key_of(meta, other), ttl_ms)
    redis.call('ZADD', expiries, now() + ttl_ms, other)
    other = redis.call('HGET', key_of(meta, other), 'previous')
end
local size = tonumber(redis.call('HGET', sizes, id) or 0)
local lack = lack_of_bytes(num_bytes - size)
if lack < 0 then return lack end
redis.call('HSET', meta, 'tenant', tenant, 'previous', previous, 'turn', ARGV[9], 'body', body)
redis.call('HSET', sizes, id, num_bytes)
redis.call('INCRBY', total, num_bytes - size)
redis.call('SADD', tenants, tenant)
keep()
if step == 'begin' then redis.call('SET', lease, ours, 'PX', lease_ms) end
if step == 'end' or step == 'cancel' then redis.call('DEL', lease) end
if step ~= 'begin' and step ~= 'update' then redis.call('HSET', meta, 'last', token) end
return 1
"""

# `id` is empty here, so that each key ends where the name of a conversation begins.
PURGE = r"""
local erased = 0
for _, each in ipairs(redis.call('ZRANGEBYSCORE', expiries, '-inf', now(), 'LIMIT', 0, 100)) do
    if redis.call('EXISTS', lease .. each) == 0 then
        erase(each, meta .. each, turns .. each)
        erased = erased + 1
    end
end
if redis.call('ZCARD', expiries) == 0 then redis.call('SREM', tenants, tenant) end
return erased
"""
