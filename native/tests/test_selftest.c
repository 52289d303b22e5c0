/* Known-answer tests: each can fail, is then named, and keeps a backend from being chosen. */
#include "check.h"

int main(int count, char **words)
{
    size_t tests = hs_self_test_count();
    CHECK(tests >= 6);
    CHECK(hs_select_backend("nonsense", NULL) == HS_BAD_ARGUMENT);
    CHECK(hs_select_backend(words[1], hs_self_test_name(0)) == HS_SELF_TEST);
    CHECK(strcmp(hs_backend(), "") == 0);
    choose_backend(count, words);
    char before[64];
    snprintf(before, sizeof before, "%s", hs_backend());
    for (size_t i = 0; i < tests; i++) {
        const char *name = hs_self_test_name(i);
        for (size_t j = 0; j < i; j++)
            CHECK(strcmp(name, hs_self_test_name(j)) != 0);
        CHECK(hs_self_test(i, 0) == HS_OK);
        CHECK(hs_self_test(i, 1) == HS_SELF_TEST);
        CHECK(hs_select_backend(words[1], name) == HS_SELF_TEST);
        CHECK(strcmp(hs_self_test_failed(), name) == 0);
        CHECK(hs_select_backend(NULL, name) == HS_SELF_TEST);
        CHECK(strcmp(hs_self_test_failed(), name) == 0);
        CHECK(strcmp(hs_backend(), before) == 0);
    }
    CHECK(hs_select_backend(words[1], NULL) == HS_OK);
    CHECK(strcmp(hs_self_test_failed(), "") == 0);
    CHECK(hs_self_test(tests, 0) == HS_BAD_ARGUMENT);
    CHECK(strcmp(hs_self_test_name(tests), "") == 0);
    return 0;
}
