/* Numbers that all processes of a test share: see counters.c. */
#ifndef HSMUX_ADAPTER_COUNTERS_H
#define HSMUX_ADAPTER_COUNTERS_H

#include <stdint.h>

/* All of these answer 0 when HSMUX_ADAPTER_COUNTERS cannot be used; one line on stderr said why. */

int counters_count_call(int function);
int counters_count_fault(int function);

/* How often the rule with this key has matched before; counts this time too. */
int counters_next_match(uint64_t key, uint64_t *before);

/* One more session of this process, unless all processes together have `max`. */
int counters_take_session(uint64_t max);
void counters_give_sessions(uint64_t sessions);

#endif
