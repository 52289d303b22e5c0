/* What adapter.c offers the other translation units. */
#ifndef HSMUX_ADAPTER_H
#define HSMUX_ADAPTER_H

#include <stddef.h>

#include "pkcs11.h"

/* The vendor's functions, with C_Initialize and C_Finalize ours. */
extern CK_FUNCTION_LIST adapter_real;

/* One line on stderr. */
__attribute__((format(printf, 1, 2))) void adapter_say(const char *format, ...);

#endif
