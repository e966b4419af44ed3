/* Lua as a guest: runs the script that is its argument, which may read itself, and judges itself. */

#include "guest.h"
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

int main(int argc, char **argv)
{
    static const char *const calls[] = {"close", "lseek", NULL};
    ascetic_policy *policy = ascetic_policy_new();
    int failed;

    MUST(argc == 2);
    allow(policy, calls);
    MUST(ascetic_policy_memory(policy, NULL) == 0);
    MUST(ascetic_policy_file(policy, argv[1], ASCETIC_READ, NULL) == 0);
    become_guest(policy, (int[]){0, 1, 2}, 3, NULL);

    lua_State *lua = luaL_newstate();
    MUST(lua);
    luaL_openlibs(lua);
    failed = luaL_dofile(lua, argv[1]);
    if (failed)
        printf("%s\n", lua_tostring(lua, -1));
    lua_close(lua);
    return failed;
}
