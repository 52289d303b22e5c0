/* The rules file that HSMUX_ADAPTER_RULES names: parsing it, and finding the rule for a call.
 *
 * The grammar is documented in docs/fault-injection.md: lines of words `key=value`, a line being
 * either a rule (it has `function=` and `action=`) or settings of the simulated device. All values
 * are kept as 64-bit numbers in one array by key, so that the table KEYS is the whole grammar, and
 * ACTIONS says which key each action needs.
 *
 * Each call looks at the file's (mtime, size, inode) and reads it again when they changed; a writer
 * replaces the file by rename. A file that cannot be read or has a mistake closes everything: all
 * calls answer CKR_GENERAL_ERROR until it is mended, because a test whose fault never happens
 * would pass for nothing. */
#include "rules.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "counters.h"
#include "faults.h"

enum { FILE_SIZE_MAX = 65536, RULES_MAX = 256, ANY_FUNCTION = HSMUX_P11_FUNCTION_COUNT };

typedef enum {
    KEY_FUNCTION,
    KEY_ACTION,
    KEY_WHEN,
    KEY_SKIP,
    KEY_COUNT,
    KEY_MIN_SIZE,
    KEY_MECHANISM,
    KEY_CODE,
    KEY_MS,
    KEY_STATUS,
    KEY_BIT,
    KEY_SIZE,
    KEYS_OF_RULES, /* from here on: keys of the device */
    KEY_SESSIONS_MAX = KEYS_OF_RULES,
    KEY_RENUMBER,
    KEY_IDLE_TIMEOUT_MS,
    KEY_SINGLE_THREAD,
    KEY_TOKEN_REMOVED,
    KEY_IV,
    KEY_NUMBER
} key;

typedef struct {
    uint32_t given; /* a bit for each key */
    uint64_t values[KEY_NUMBER];
    uint64_t identity; /* of this line in this file, for the counters */
} line;

typedef struct {
    const char *name;
    uint64_t value;
} word;

#define FUNCTION(name, parameters, arguments) {#name, F_##name},
static const word FUNCTION_WORDS[] = {
    HSMUX_P11_FUNCTIONS(FUNCTION){"*", ANY_FUNCTION}, {NULL, 0}};
#undef FUNCTION

#define RETURN_VALUE(name, number) {#name, number},
static const word CODE_WORDS[] = {HSMUX_P11_RETURN_VALUES(RETURN_VALUE){NULL, 0}};
#undef RETURN_VALUE

static const word MECHANISM_WORDS[] = {{"CKM_RSA_PKCS_KEY_PAIR_GEN", 0x0000},
                                       {"CKM_RSA_PKCS", 0x0001},
                                       {"CKM_RSA_X_509", 0x0003},
                                       {"CKM_RSA_PKCS_OAEP", 0x0009},
                                       {"CKM_RSA_PKCS_PSS", 0x000d},
                                       {"CKM_SHA256_RSA_PKCS", 0x0040},
                                       {"CKM_SHA256", 0x0250},
                                       {"CKM_SHA256_HMAC", 0x0251},
                                       {"CKM_GENERIC_SECRET_KEY_GEN", 0x0350},
                                       {"CKM_EC_KEY_PAIR_GEN", 0x1040},
                                       {"CKM_ECDSA", 0x1041},
                                       {"CKM_ECDH1_DERIVE", 0x1050},
                                       {"CKM_AES_KEY_GEN", 0x1080},
                                       {"CKM_AES_ECB", 0x1081},
                                       {"CKM_AES_CBC", 0x1082},
                                       {"CKM_AES_CBC_PAD", 0x1085},
                                       {"CKM_AES_CTR", 0x1086},
                                       {"CKM_AES_GCM", 0x1087},
                                       {"CKM_AES_KEY_WRAP", 0x2109},
                                       {"CKM_AES_KEY_WRAP_PAD", 0x210a},
                                       {NULL, 0}};

static const word ACTION_WORDS[] = {{"return", ACTION_RETURN}, {"sleep", ACTION_SLEEP},
                                    {"hang", ACTION_HANG},     {"segv", ACTION_SEGV},
                                    {"exit", ACTION_EXIT},     {"flip", ACTION_FLIP},
                                    {"resize", ACTION_RESIZE}, {"latency", ACTION_LATENCY},
                                    {NULL, 0}};
static const word WHEN_WORDS[] = {{"before", 0}, {"after", 1}, {NULL, 0}};
static const word SWITCH_WORDS[] = {{"off", 0}, {"on", 1}, {NULL, 0}};
static const word IV_WORDS[] = {{"callers", 0}, {"written-back", 1}, {NULL, 0}};

/* A value is one of `words`, or a number up to `max` when that is not 0. */
static const struct {
    const char *name;
    const word *words;
    uint64_t max;
    const char *remedy;
} KEYS[KEY_NUMBER] = {
    [KEY_FUNCTION] = {"function", FUNCTION_WORDS, 0, "a PKCS#11 function such as C_Encrypt, or *"},
    [KEY_ACTION] = {"action", ACTION_WORDS, 0,
                    "return, sleep, hang, segv, exit, flip, resize or latency"},
    [KEY_WHEN] = {"when", WHEN_WORDS, 0, "before or after"},
    [KEY_SKIP] = {"skip", NULL, UINT32_MAX, "a number"},
    [KEY_COUNT] = {"count", NULL, UINT32_MAX, "a number"},
    [KEY_MIN_SIZE] = {"min_size", NULL, UINT32_MAX, "bytes of input"},
    [KEY_MECHANISM] = {"mechanism", MECHANISM_WORDS, UINT32_MAX,
                       "a mechanism such as CKM_AES_GCM, or its number as 0x1087"},
    [KEY_CODE] = {"code", CODE_WORDS, UINT32_MAX,
                  "a return value such as CKR_DEVICE_ERROR, or its number as 0x30"},
    [KEY_MS] = {"ms", NULL, UINT32_MAX, "milliseconds"},
    [KEY_STATUS] = {"status", NULL, 255, "an exit status from 0 to 255"},
    [KEY_BIT] = {"bit", NULL, UINT32_MAX, "the number of a bit"},
    [KEY_SIZE] = {"size", NULL, UINT32_MAX, "bytes of output"},
    [KEY_SESSIONS_MAX] = {"sessions_max", NULL, UINT32_MAX, "a number of sessions"},
    [KEY_RENUMBER] = {"renumber", SWITCH_WORDS, 0, "on or off"},
    [KEY_IDLE_TIMEOUT_MS] = {"idle_timeout_ms", NULL, UINT32_MAX, "milliseconds"},
    [KEY_SINGLE_THREAD] = {"single_thread", SWITCH_WORDS, 0, "on or off"},
    [KEY_TOKEN_REMOVED] = {"token_removed", SWITCH_WORDS, 0, "on or off"},
    [KEY_IV] = {"iv", IV_WORDS, 0, "written-back or callers"},
};

#define BIT(key) (1u << (key))
enum {
    RULE_KEYS = BIT(KEYS_OF_RULES) - 1,
    REQUIRED = BIT(KEY_FUNCTION) | BIT(KEY_ACTION),
    OPTIONAL = BIT(KEY_WHEN) | BIT(KEY_SKIP) | BIT(KEY_COUNT) | BIT(KEY_MIN_SIZE) |
               BIT(KEY_MECHANISM)
};

/* The one key whose value an action takes; KEY_NUMBER: none. */
static const key ARGUMENTS[] = {
    [ACTION_RETURN] = KEY_CODE, [ACTION_SLEEP] = KEY_MS,    [ACTION_HANG] = KEY_NUMBER,
    [ACTION_SEGV] = KEY_NUMBER, [ACTION_EXIT] = KEY_STATUS, [ACTION_FLIP] = KEY_BIT,
    [ACTION_RESIZE] = KEY_SIZE, [ACTION_LATENCY] = KEY_MS};

typedef struct {
    struct timespec changed;
    off_t size;
    ino_t inode;
} identity;

static const identity MISSING = {.inode = 0};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static identity read_identity;
static int was_read, usable;
static line rules[RULES_MAX];
static size_t rules_count;
static line device_line;

static int find_word(const word *words, const char *name, uint64_t *value)
{
    for (; words != NULL && words->name != NULL; words++)
        if (strcmp(words->name, name) == 0) {
            *value = words->value;
            return 1;
        }
    return 0;
}

static int parse_number(const char *text, uint64_t max, uint64_t *value)
{
    char *end;
    if (text[0] < '0' || text[0] > '9')
        return 0;
    errno = 0;
    *value = strtoull(text, &end, text[1] == 'x' ? 16 : 10);
    return errno == 0 && *end == '\0' && *value <= max;
}

static int complain(const char *path, size_t number, const char *what, const char *subject,
                    const char *remedy)
{
    adapter_say("%s line %zu: %s %s; write %s (every call answers CKR_GENERAL_ERROR until then)",
                path, number, what, subject, remedy);
    return 0;
}

static int parse_word(const char *path, size_t number, char *text, line *into)
{
    char *equals = strchr(text, '=');
    if (equals == NULL)
        return complain(path, number, "no value in", text, "key=value");
    *equals = '\0';
    int k = 0;
    while (k < KEY_NUMBER && strcmp(KEYS[k].name, text) != 0)
        k++;
    if (k == KEY_NUMBER)
        return complain(path, number, "unknown key", text, "a key of docs/fault-injection.md");
    if (into->given & BIT(k))
        return complain(path, number, "given twice:", text, "it once");
    if (!find_word(KEYS[k].words, equals + 1, &into->values[k]) &&
        !(KEYS[k].max > 0 && parse_number(equals + 1, KEYS[k].max, &into->values[k])))
        return complain(path, number, "bad value of", text, KEYS[k].remedy);
    into->given |= BIT(k);
    return 1;
}

static int changes_output(const line *rule)
{
    uint64_t action = rule->values[KEY_ACTION];
    return action == ACTION_FLIP || action == ACTION_RESIZE;
}

/* A rule has all it needs and nothing that its action does not take. */
static int check_rule(const char *path, size_t number, const line *rule)
{
    if ((rule->given & REQUIRED) != REQUIRED)
        return complain(path, number, "not a whole rule:", "function or action is missing",
                        "both in one line");
    if (changes_output(rule) && rule->given & BIT(KEY_WHEN) && rule->values[KEY_WHEN] == 0)
        return complain(path, number, "the action changes the output,", "so it cannot come before",
                        "when=after");
    key argument = ARGUMENTS[rule->values[KEY_ACTION]];
    uint32_t needed = argument == KEY_NUMBER ? 0 : BIT(argument);
    if ((rule->given & needed) != needed)
        return complain(path, number, "the action needs", KEYS[argument].name,
                        KEYS[argument].remedy);
    if (rule->given & ~(REQUIRED | OPTIONAL | needed))
        return complain(path, number, "a key that is not for", "this action",
                        "only what docs/fault-injection.md lists for it");
    return 1;
}

static int parse_line(const char *path, size_t number, char *text)
{
    line parsed = {.given = 0};
    char *rest = NULL;
    char *comment = strchr(text, '#');
    if (comment != NULL)
        *comment = '\0';
    for (char *w = strtok_r(text, " \t\r", &rest); w != NULL; w = strtok_r(NULL, " \t\r", &rest))
        if (!parse_word(path, number, w, &parsed))
            return 0;
    if (parsed.given == 0)
        return 1;
    if (!(parsed.given & RULE_KEYS)) {
        if (device_line.given & parsed.given)
            return complain(path, number, "given twice:", "a setting of the device", "it once");
        for (int k = KEYS_OF_RULES; k < KEY_NUMBER; k++)
            if (parsed.given & BIT(k))
                device_line.values[k] = parsed.values[k];
        device_line.given |= parsed.given;
        return 1;
    }
    if (!check_rule(path, number, &parsed))
        return 0;
    if (rules_count == RULES_MAX)
        return complain(path, number, "too many", "rules", "at most 256");
    rules[rules_count++] = parsed;
    return 1;
}

/* FNV-1a: the rule's key in the shared counters, never 0. */
static uint64_t identify(const identity *file, size_t number)
{
    const uint64_t parts[] = {(uint64_t)file->changed.tv_sec, (uint64_t)file->changed.tv_nsec,
                              (uint64_t)file->size, (uint64_t)file->inode, number};
    const unsigned char *bytes = (const unsigned char *)parts;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof parts; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash == 0 ? 1 : hash;
}

static int parse_file(const char *path, char *text)
{
    size_t number = 1;
    rules_count = 0;
    memset(&device_line, 0, sizeof device_line);
    for (char *next = text; next != NULL; number++) {
        char *now = next;
        size_t before = rules_count;
        next = strchr(now, '\n');
        if (next != NULL)
            *next++ = '\0';
        if (!parse_line(path, number, now))
            return 0;
        if (rules_count > before)
            rules[before].identity = identify(&read_identity, number);
    }
    return 1;
}

static identity identity_of(const struct stat *status)
{
    return (identity){status->st_mtim, status->st_size, status->st_ino};
}

static int read_file(const char *path)
{
    static char text[FILE_SIZE_MAX + 1];
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = -1;
    read_identity = MISSING;
    if (file >= 0 && fstat(file, &status) == 0) {
        read_identity = identity_of(&status);
        size = read(file, text, sizeof text);
    }
    int error = errno;
    if (file >= 0)
        close(file);
    if (size < 0)
        return complain(path, 1, "cannot be read:", strerror(error), "the file");
    if (size > FILE_SIZE_MAX || memchr(text, '\0', (size_t)size) != NULL)
        return complain(path, 1, "not a rules file:", "too long or binary", "text up to 64 KiB");
    text[size] = '\0';
    return parse_file(path, text);
}

static int is_current(const char *path)
{
    struct stat status;
    identity now = stat(path, &status) == 0 ? identity_of(&status) : MISSING;
    return was_read && now.changed.tv_sec == read_identity.changed.tv_sec &&
           now.changed.tv_nsec == read_identity.changed.tv_nsec &&
           now.size == read_identity.size && now.inode == read_identity.inode;
}

/* With the lock held: whether the rules can be used. */
static int refresh(void)
{
    const char *path = getenv("HSMUX_ADAPTER_RULES");
    if (path == NULL)
        return 1;
    if (!is_current(path)) {
        usable = read_file(path);
        was_read = 1;
    }
    return usable;
}

int rules_device(device *device)
{
    pthread_mutex_lock(&lock);
    int fit = refresh();
    const uint64_t *values = device_line.values;
    device->sessions_max =
        device_line.given & BIT(KEY_SESSIONS_MAX) ? values[KEY_SESSIONS_MAX] : UINT64_MAX;
    device->idle_timeout_ms = values[KEY_IDLE_TIMEOUT_MS];
    device->renumber = values[KEY_RENUMBER] != 0;
    device->single_thread = values[KEY_SINGLE_THREAD] != 0;
    device->token_removed = values[KEY_TOKEN_REMOVED] != 0;
    device->iv_written_back = values[KEY_IV] != 0;
    pthread_mutex_unlock(&lock);
    return fit;
}

static int fits(const line *rule, const call *call)
{
    const uint64_t *values = rule->values;
    int named = values[KEY_FUNCTION] == (uint64_t)call->function;
    if (!named && values[KEY_FUNCTION] != ANY_FUNCTION)
        return 0;
    if (changes_output(rule) && call->output == NULL)
        return 0;
    if (call->input_size < values[KEY_MIN_SIZE])
        return 0;
    return !(rule->given & BIT(KEY_MECHANISM)) ||
           (call->has_mechanism_type && call->mechanism_type == values[KEY_MECHANISM]);
}

/* Whether it is the rule's turn; 1 yes, 0 no, -1 the counters fail. */
static int is_due(const line *rule)
{
    uint64_t before;
    uint64_t count = rule->given & BIT(KEY_COUNT) ? rule->values[KEY_COUNT] : UINT64_MAX;
    if (!counters_next_match(rule->identity, &before))
        return -1;
    return before >= rule->values[KEY_SKIP] && before - rule->values[KEY_SKIP] < count;
}

int rules_match(const struct call *call, rule *due, uint64_t *latency_ms)
{
    int fit = 1;
    *due = (rule){.action = ACTION_NONE};
    *latency_ms = 0;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < rules_count && fit && due->action == ACTION_NONE; i++) {
        const line *found = &rules[i];
        if (!fits(found, call))
            continue;
        int turn = is_due(found);
        fit = turn >= 0;
        int action = (int)found->values[KEY_ACTION];
        if (turn > 0 && action == ACTION_LATENCY)
            *latency_ms += found->values[KEY_MS];
        else if (turn > 0)
            *due = (rule){(enum action)action,
                          found->values[KEY_WHEN] != 0 || changes_output(found),
                          ARGUMENTS[action] == KEY_NUMBER ? 0 : found->values[ARGUMENTS[action]]};
    }
    pthread_mutex_unlock(&lock);
    return fit;
}
