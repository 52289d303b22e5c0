/* Object handles under numbers of our own (`renumber=on`): see objects.c. */
#ifndef HSMUX_ADAPTER_OBJECTS_H
#define HSMUX_ADAPTER_OBJECTS_H

#include "faults.h"

/* Around C_Initialize and C_Finalize: numbers hold from one to the other. */
void objects_start(int renumber);
void objects_end(void);

/* Numbers in the arguments to the module's handles. */
CK_RV objects_enter(call *call);

/* The module's handles in its answer to numbers. */
CK_RV objects_leave(call *call);

#endif
