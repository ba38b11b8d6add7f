/* The part of libnvidia-ml.so.1 that widthwise reads, answering as the environment says. Compiled by test_nvml.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NO_PERMISSION = 4, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 0) : otherwise;
}

static int reading(void) {
    static int count = 0;
    if (count++ >= setting("STUB_LOST_AFTER", 1000000)) return GPU_IS_LOST;
    return (int)setting("STUB_READ", SUCCESS);
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return (int)setting("STUB_INIT", SUCCESS); }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "stub error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)setting("STUB_COUNT", 1); return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return (int)setting("STUB_HANDLE", SUCCESS);
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = (void *)1;
    return strcmp(uuid, "GPU-stub") ? 6 /* not found */ : SUCCESS;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    (void)device;
    snprintf(name, length, "Stub 9000");
    return SUCCESS;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    (void)device;
    snprintf(uuid, length, "GPU-stub");
    return SUCCESS;
}
int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "999.1");
    return SUCCESS;
}
struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    (void)device;
    memory->total = 3ull << 30;
    memory->free = memory->used = 0;
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *mhz) {
    (void)device;
    *mhz = (unsigned)setting("STUB_CLOCK", 1700) + (type != 1) * 7000;
    return reading();
}
int nvmlDeviceGetMaxClockInfo(void *device, int type, unsigned *mhz) {
    (void)device;
    *mhz = 2000 + (type != 1) * 7000;
    return SUCCESS;
}
#ifdef OLD_DRIVER
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons) {
#else
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
#endif
    (void)device;
    *reasons = (unsigned long long)setting("STUB_REASONS", 0);
    return reading();
}
struct process { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *processes) {
    unsigned others = (unsigned)setting("STUB_OTHERS", 0);
    (void)device;
    int code = reading();
    if (code != SUCCESS) return code;
    if (!others) { *count = 0; return SUCCESS; }
    if (!processes || *count < others) { *count = others; return INSUFFICIENT_SIZE; }
    for (unsigned i = 0; i < others; i++) processes[i] = (struct process){4000000 + i, 1 << 20, 0, 0};
    *count = others;
    return SUCCESS;
}
int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    (void)device;
    *current = *pending = (unsigned)setting("STUB_MIG", 0);
    return setting("STUB_MIG", -1) < 0 ? NOT_SUPPORTED : SUCCESS;
}
int nvmlDeviceGetPersistenceMode(void *device, unsigned *mode) {
    (void)device;
    *mode = (unsigned)setting("STUB_PERSISTENT", 1);
    return SUCCESS;
}
