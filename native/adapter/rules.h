/* The rules file: what is injected when, and what device is simulated. See rules.c. */
#ifndef HSMUX_ADAPTER_RULES_H
#define HSMUX_ADAPTER_RULES_H

#include <stdint.h>

#include "adapter.h"

struct call;

typedef enum action {
    ACTION_NONE,
    ACTION_RETURN,
    ACTION_SLEEP,
    ACTION_HANG,
    ACTION_SEGV,
    ACTION_EXIT,
    ACTION_FLIP,
    ACTION_RESIZE,
    ACTION_LATENCY
} action;

typedef struct {
    action action;
    int after;         /* the module is called first */
    uint64_t argument; /* the value of the one key that the action takes, 0 if it takes none */
} rule;

/* The device that is simulated. A new process and an empty file have none of it. */
typedef struct {
    uint64_t sessions_max; /* of all processes together; UINT64_MAX: no limit */
    uint64_t idle_timeout_ms; /* 0: none */
    int renumber, single_thread, token_removed, iv_written_back;
} device;

/* Reads the file again when it changed. 0: it is malformed, one line on stderr said where. */
int rules_device(device *device);

/* The rule due for a call, and the latency of all rules that say one. 0: as above. */
int rules_match(const struct call *call, rule *due, uint64_t *latency_ms);

#endif
