/* A stand-in of NVIDIA's management library, as far as the launcher asks it. What it tells stands in the text file that
 * the variable NVML_STATE names, read anew at each call:
 *
 *     gpu TOTAL FREE UUID NAME             one line each, in order; bytes
 *     process GPU compute|graphics PID BYTES|unknown
 *     fail FUNCTION CODE [GPU]             that call answers with this code
 *
 * Signatures and structures as in NVIDIA's nvml.h. With -DOLD it lacks the functions that came with R510. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, GPUS = 16 };

typedef struct { int index; } *Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } Process;

static struct { int index; } handles[GPUS];
static int started;

static FILE *state(void) {
    const char *path = getenv("NVML_STATE");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) {
        fprintf(stderr, "nvml stand-in: NVML_STATE names no file\n");
        abort();
    }
    return file;
}

/* The code that `function` is to answer with; `gpu` is -1 where it asks for none. */
static int failing(const char *function, int gpu) {
    char line[512], name[64];
    int code, which, found = SUCCESS;
    FILE *file = state();
    while (fgets(line, sizeof line, file)) {
        int fields = sscanf(line, "fail %63s %d %d", name, &code, &which);
        if (fields >= 2 && !strcmp(name, function) && (fields == 2 || which == gpu))
            found = code;
    }
    fclose(file);
    return found ? found : started || !strncmp(function, "nvmlInit", 8) ? SUCCESS : UNINITIALIZED;
}

/* The `index`th GPU's line; returns how many there are. */
static int gpu(int index, Memory *memory, char uuid[96], char name[96]) {
    char line[512], a_uuid[96], a_name[96];
    unsigned long long total, free_;
    int count = 0;
    FILE *file = state();
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "gpu %llu %llu %95s %95[^\n]", &total, &free_, a_uuid, a_name) == 4 && count++ == index) {
            *memory = (Memory){total, free_, total - free_};
            strcpy(uuid, a_uuid);
            strcpy(name, a_name);
        }
    fclose(file);
    return count;
}

int nvmlInitWithFlags(unsigned int flags) {
    int code = failing("nvmlInitWithFlags", -1);
    (void)flags;
    started += code == SUCCESS;
    return code;
}

int nvmlShutdown(void) {
    int code = failing("nvmlShutdown", -1);
    started -= code == SUCCESS;
    return code;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "a code of the stand-in";
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    Memory memory;
    char uuid[96], name[96];
    int code = failing("nvmlDeviceGetCount_v2", -1);
    if (!code)
        *count = gpu(-1, &memory, uuid, name);
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, Device *device) {
    Memory memory;
    char uuid[96], name[96];
    int code = failing("nvmlDeviceGetHandleByIndex_v2", index);
    if (code)
        return code;
    if (index >= GPUS || (int)index >= gpu(index, &memory, uuid, name))
        return INVALID_ARGUMENT;
    handles[index].index = index;
    *device = (Device)&handles[index];
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    char uuid[96], name[96];
    int code = failing("nvmlDeviceGetMemoryInfo", device->index);
    return code ? code : gpu(device->index, memory, uuid, name) > device->index ? SUCCESS : INVALID_ARGUMENT;
}

/* `text` gets the UUID or, if not `wants_uuid`, the name. */
static int text(const char *function, Device device, int wants_uuid, char *text, unsigned int length) {
    Memory memory;
    char uuid[96], name[96];
    int code = failing(function, device->index);
    if (code)
        return code;
    if (gpu(device->index, &memory, uuid, name) <= device->index)
        return INVALID_ARGUMENT;
    return snprintf(text, length, "%s", wants_uuid ? uuid : name) < (int)length ? SUCCESS : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetUUID(Device device, char *uuid, unsigned int length) {
    return text("nvmlDeviceGetUUID", device, 1, uuid, length);
}

int nvmlDeviceGetName(Device device, char *name, unsigned int length) {
    return text("nvmlDeviceGetName", device, 0, name, length);
}

/* As NVML does: with too little room in `found` (none at the first call) it tells how many there are. */
static int processes(const char *function, const char *wanted, Device device, unsigned int *count, Process *found) {
    char line[512], kind[16], used[32];
    unsigned int room = *count, pid;
    int index, code = failing(function, device->index);
    if (code)
        return code;
    *count = 0;
    FILE *file = state();
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "process %d %15s %u %31s", &index, kind, &pid, used) == 4 && index == device->index &&
            !strcmp(kind, wanted)) {
            if (*count < room && found)
                found[*count] = (Process){pid, strcmp(used, "unknown") ? strtoull(used, NULL, 10) : ~0ULL, ~0U, ~0U};
            ++*count;
        }
    fclose(file);
    return *count > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device device, unsigned int *count, Process *found) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v2", "compute", device, count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v2(Device device, unsigned int *count, Process *found) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v2", "graphics", device, count, found);
}

#ifndef OLD
int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned int *count, Process *found) {
    return processes("nvmlDeviceGetComputeRunningProcesses_v3", "compute", device, count, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device device, unsigned int *count, Process *found) {
    return processes("nvmlDeviceGetGraphicsRunningProcesses_v3", "graphics", device, count, found);
}
#endif
