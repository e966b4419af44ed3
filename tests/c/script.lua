-- What an interpreter does: tables, closures, coroutines, patterns, errors, the collector, files, the clock.

local script = arg and arg[0] or debug.getinfo(1, "S").source:sub(2)

-- Eight queens: 92 ways.
local function queens(n)
  local ways, columns, up, down = 0, {}, {}, {}
  local function place(row)
    if row > n then ways = ways + 1 return end
    for c = 1, n do
      if not (columns[c] or up[row + c] or down[row - c]) then
        columns[c], up[row + c], down[row - c] = true, true, true
        place(row + 1)
        columns[c], up[row + c], down[row - c] = nil, nil, nil
      end
    end
  end
  place(1)
  return ways
end
assert(queens(8) == 92)

-- A generator, an error through it, and an error that is caught (longjmp).
local squares = coroutine.wrap(function() for i = 1, 10 do coroutine.yield(i * i) end error("no more") end)
local sum = 0
for _ = 1, 10 do sum = sum + squares() end
assert(sum == 385)
local ok, message = pcall(squares)
assert(not ok and message:find("no more"))
assert(not pcall(string.rep, "x", 1 << 60))

-- Tens of megabytes of garbage.
local words = {}
for i = 1, 200000 do words[i] = ("word %d"):format(i) .. ("."):rep(i % 100) end
table.sort(words)
assert(#table.concat(words) > 10000000)
local before = collectgarbage("count")
words = nil
collectgarbage()
assert(collectgarbage("count") < before / 4)

-- Floating point, and the text of numbers.
assert(("%.10f"):format(math.sin(1) ^ 2 + math.cos(1) ^ 2) == "1.0000000000")
assert(os.time() > 1600000000 and os.clock() >= 0)

-- The one file that it may read is this one.
local file = assert(io.open(script))
assert(file:read("l"):find("interpreter"))
assert(file:seek("end") > 1000 and file:seek("set", 3) == 3 and file:read(4) == "What")
file:close()

-- Its neighbours it may not, nor write this one, nor start programs.
for _, try in ipairs { { "/etc/shadow", "r" }, { script .. ".neighbour", "r" }, { script, "a" }, { "/tmp/lua", "w" } } do
  local opened, why = io.open(try[1], try[2])
  assert(not opened and why:find("Permission denied"), why)
end
assert(not os.execute("true"))
assert(not os.remove(script))
print("script: all as it must be")
