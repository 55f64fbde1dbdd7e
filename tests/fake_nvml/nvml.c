/* A libnvidia-ml.so.1 without a GPU: what the sensor asks of NVML, answered from a scenario.
 *
 * The scenario is the file that FAKE_NVML_SCENARIO names, one setting a line, read again whenever it was replaced, so a
 * test can change the world while a program asks. `N` is a GPU, `*` all of them:
 *
 *   init CODE                          nvmlInit fails
 *   gpus COUNT
 *   driver VERSION | cuda NUMBER
 *   refuse FUNCTION CODE               for everybody
 *   gpu N refuse FUNCTION CODE
 *   gpu N lost CODE                    every call on it fails with this code, and waits for events too
 *   gpu N stale                        the same with "lost", until NVML is initialised again
 *   gpu N FIELD NUMBER                 used, total, reserved, busy, memory_busy, milliwatts, limit, celsius, reasons,
 *                                      megahertz, mig
 *   gpu N name TEXT
 *   gpu N process LIST PID BYTES       LIST: compute, graphics, mps; BYTES: a number or `na`
 *   xid N NUMBER                       delivered once, if it came after the event set was made
 *   hang FUNCTION                      never returns
 *   hang_unkillable FUNCTION           never returns, in state D, and SIGKILL does not end the process
 *   crash FUNCTION
 *   calls FILE                         each call is written there: function and GPU
 *
 * With -DOLD_DRIVER the functions that came with R510 and later are missing. Layouts are those of nvml.h.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15,
    MAX_GPUS = 32, MAX_PROCESSES = 32, MAX_RULES = 256, MAX_XIDS = 256, EVERY = -1, NOBODY = -2,
};
static const unsigned long long NOT_AVAILABLE = -1ULL, XID_EVENT = 8;

typedef struct { int gpu; char function[64]; int code; } Rule;
typedef struct { char list[16]; unsigned pid; unsigned long long bytes; } Process;
typedef struct {
    unsigned long long used, total, reserved, reasons;
    unsigned busy, memory_busy, milliwatts, limit, celsius, megahertz, mig;
    char name[96];
    int lost, is_stale, process_count;
    Process processes[MAX_PROCESSES];
} Gpu;
typedef struct { int gpu; unsigned long long number; } Xid;

static struct {
    int init, count, cuda, rule_count, xid_count;
    char driver[80], hang[64], hang_unkillable[64], crash[64], calls[512];
    Gpu gpus[MAX_GPUS];
    Rule rules[MAX_RULES];
    Xid xids[MAX_XIDS];
} world;
static struct stat seen;
static int users;                  /* nvmlInit less nvmlShutdown */
static int is_stale[MAX_GPUS];     /* sticks to the GPU until NVML is initialised again */

typedef struct { unsigned long long registered; int delivered; } EventSet;
typedef struct { Gpu *device; unsigned long long type, data; unsigned gpu_instance, compute_instance; } EventData;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } ProcessInfo;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned version, sensor; int temperature; } Temperature;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    char legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char id[32];
} PciInfo;

/* --- the scenario ------------------------------------------------------------------------------------------------- */

static void set_gpu(int index, const char *line) {
    Gpu *gpu = &world.gpus[index];
    Process *process = &gpu->processes[gpu->process_count];
    char word[64], bytes[32];
    unsigned long long number;
    int code;
    if (sscanf(line, "process %15s %u %31s", process->list, &process->pid, bytes) == 3) {
        process->bytes = strcmp(bytes, "na") ? strtoull(bytes, NULL, 10) : NOT_AVAILABLE;
        gpu->process_count++;
    } else if (sscanf(line, "refuse %63s %d", word, &code) == 2) {
        Rule *rule = &world.rules[world.rule_count++];
        rule->gpu = index, rule->code = code, strcpy(rule->function, word);
    } else if (sscanf(line, "lost %d", &code) == 1) gpu->lost = code;
    else if (!strcmp(line, "stale")) gpu->is_stale = 1;
    else if (sscanf(line, "name %95[^\n]", gpu->name) == 1) return;
    else if (sscanf(line, "%63s %llu", word, &number) == 2) {
        if (!strcmp(word, "used")) gpu->used = number;
        if (!strcmp(word, "total")) gpu->total = number;
        if (!strcmp(word, "reserved")) gpu->reserved = number;
        if (!strcmp(word, "reasons")) gpu->reasons = number;
        if (!strcmp(word, "busy")) gpu->busy = number;
        if (!strcmp(word, "memory_busy")) gpu->memory_busy = number;
        if (!strcmp(word, "milliwatts")) gpu->milliwatts = number;
        if (!strcmp(word, "limit")) gpu->limit = number;
        if (!strcmp(word, "celsius")) gpu->celsius = number;
        if (!strcmp(word, "megahertz")) gpu->megahertz = number;
        if (!strcmp(word, "mig")) gpu->mig = number;
    }
}

static void set(const char *line) {
    char word[64], rest[256] = "";
    int index, code;
    unsigned long long number;
    if (sscanf(line, "gpu %d %255[^\n]", &index, rest) == 2) set_gpu(index, rest);
    else if (sscanf(line, "gpu * %255[^\n]", rest) == 1) for (int i = 0; i < MAX_GPUS; i++) set_gpu(i, rest);
    else if (sscanf(line, "refuse %63s %d", word, &code) == 2) {
        Rule *rule = &world.rules[world.rule_count++];
        rule->gpu = EVERY, rule->code = code, strcpy(rule->function, word);
    } else if (sscanf(line, "xid %d %llu", &index, &number) == 2) {
        world.xids[world.xid_count++] = (Xid){index, number};
    }
    sscanf(line, "init %d", &world.init);
    sscanf(line, "gpus %d", &world.count);
    sscanf(line, "cuda %d", &world.cuda);
    sscanf(line, "driver %79s", world.driver);
    sscanf(line, "hang %63s", world.hang);
    sscanf(line, "hang_unkillable %63s", world.hang_unkillable);
    sscanf(line, "crash %63s", world.crash);
    sscanf(line, "calls %511s", world.calls);
}

static void reload(void) {
    const char *path = getenv("FAKE_NVML_SCENARIO");
    struct stat now;
    if (!path || stat(path, &now) || (now.st_ino == seen.st_ino && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)) return;
    FILE *file = fopen(path, "r");
    if (!file) return;
    seen = now;
    memset(&world, 0, sizeof world);
    world.count = 1, world.cuda = 12040;
    strcpy(world.driver, "550.54.15");
    for (int i = 0; i < MAX_GPUS; i++) {
        world.gpus[i] = (Gpu){.total = 80ULL << 30, .limit = 700000, .milliwatts = 70000, .celsius = 30, .megahertz = 1980};
        strcpy(world.gpus[i].name, "NVIDIA H100 80GB HBM3");
    }
    char line[512];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        set(line);
    }
    fclose(file);
    for (int i = 0; i < MAX_GPUS; i++) is_stale[i] |= world.gpus[i].is_stale;
}

/* --- what may happen in any call ---------------------------------------------------------------------------------- */

/* A vfork waits for its child in state D, but SIGKILL ends that wait. A tracer that wants to see it exit, and then looks
 * away, keeps it from ending: like a driver that holds a dying process, until the tracer itself is ended. */
static void hang_unkillable(void) {
    int ready[2];
    char byte;
    if (pipe(ready)) abort();
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    if (!fork()) {
        if (ptrace(PTRACE_SEIZE, getppid(), 0, PTRACE_O_TRACEEXIT)) abort();
        if (write(ready[1], "x", 1) == 1) for (;;) pause();
    }
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1) abort();
    if (!vfork()) for (;;) pause();
}

static int index_of(const Gpu *gpu) { return gpu ? (int)(gpu - world.gpus) : NOBODY; }

static int enter(const char *function, const Gpu *gpu) {
    int index = index_of(gpu);
    reload();
    if (*world.calls) {
        FILE *calls = fopen(world.calls, "a");
        if (calls) fprintf(calls, "%s %d\n", function, index), fclose(calls);
    }
    if (!strcmp(function, world.crash)) prctl(PR_SET_DUMPABLE, 0), abort();
    if (!strcmp(function, world.hang)) for (;;) pause();
    if (!strcmp(function, world.hang_unkillable)) hang_unkillable();
    if (!users && strncmp(function, "nvmlInit", 8)) return UNINITIALIZED;
    if (gpu && world.gpus[index].lost) return world.gpus[index].lost;
    if (gpu && is_stale[index]) return GPU_IS_LOST;
    for (int i = 0; i < world.rule_count; i++) {
        Rule *rule = &world.rules[i];
        if ((rule->gpu == EVERY || rule->gpu == index) && !strcmp(rule->function, function)) return rule->code;
    }
    return SUCCESS;
}

#define ENTER(gpu)                               \
    do {                                         \
        int failure = enter(__func__, gpu);      \
        if (failure) return failure;             \
    } while (0)

#define GETTER(name, type, expression)           \
    int name(Gpu *gpu, type *answer) {           \
        ENTER(gpu);                              \
        *answer = (expression);                  \
        return SUCCESS;                          \
    }

/* --- NVML --------------------------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    ENTER(NULL);
    if (world.init) return world.init;
    if (!users++) for (int i = 0; i < MAX_GPUS; i++) is_stale[i] = world.gpus[i].is_stale;
    return SUCCESS;
}

int nvmlShutdown(void) {
    ENTER(NULL);
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char text[40];
    snprintf(text, sizeof text, "error %d of the fake driver", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    ENTER(NULL);
    snprintf(version, length, "%s", world.driver);
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion(int *version) {
    ENTER(NULL);
    *version = world.cuda;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER(NULL);
    *count = world.count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **gpu) {
    reload();
    if (index >= (unsigned)world.count) return INVALID_ARGUMENT;
    ENTER(&world.gpus[index]);
    *gpu = &world.gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetIndex(Gpu *gpu, unsigned *index) {
    ENTER(gpu);
    *index = index_of(gpu);
    return SUCCESS;
}

int nvmlDeviceGetName(Gpu *gpu, char *name, unsigned length) {
    ENTER(gpu);
    snprintf(name, length, "%s", gpu->name);
    return SUCCESS;
}

int nvmlDeviceGetUUID(Gpu *gpu, char *uuid, unsigned length) {
    ENTER(gpu);
    snprintf(uuid, length, "GPU-%08x-0000-0000-0000-000000000000", index_of(gpu));
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(Gpu *gpu, PciInfo *info) {
    ENTER(gpu);
    memset(info, 0, sizeof *info);
    info->bus = 0x10 + index_of(gpu);
    snprintf(info->id, sizeof info->id, "00000000:%02X:00.0", info->bus);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Gpu *gpu, Memory *memory) {
    ENTER(gpu);
    unsigned long long used = gpu->used + gpu->reserved;
    *memory = (Memory){.total = gpu->total, .used = used, .free = gpu->total - used};
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Gpu *gpu, Utilization *rates) {
    ENTER(gpu);
    *rates = (Utilization){.gpu = gpu->busy, .memory = gpu->memory_busy};
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Gpu *gpu, unsigned *current, unsigned *pending) {
    ENTER(gpu);
    *current = *pending = gpu->mig;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Gpu *gpu, unsigned sensor, unsigned *celsius) {
    ENTER(gpu);
    *celsius = gpu->celsius;
    return sensor ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlDeviceGetClockInfo(Gpu *gpu, unsigned type, unsigned *megahertz) {
    ENTER(gpu);
    *megahertz = gpu->megahertz;
    return type == 1 ? SUCCESS : INVALID_ARGUMENT;  /* NVML_CLOCK_SM */
}

GETTER(nvmlDeviceGetPowerUsage, unsigned, gpu->milliwatts)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned, gpu->limit)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned, gpu->limit)
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, gpu->reasons)

static int processes(const Gpu *gpu, const char *list, unsigned *room, ProcessInfo *infos) {
    unsigned count = 0;
    for (int i = 0; i < gpu->process_count; i++) {
        if (strcmp(gpu->processes[i].list, list)) continue;
        if (infos && count < *room)
            infos[count] = (ProcessInfo){.pid = gpu->processes[i].pid, .bytes = gpu->processes[i].bytes};
        count++;
    }
    int is_short = count > *room;
    *room = count;
    return is_short ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESS_LIST(name, list)                                         \
    int name(Gpu *gpu, unsigned *count, ProcessInfo *infos) {            \
        ENTER(gpu);                                                      \
        return processes(gpu, list, count, infos);                       \
    }

PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, "mps")

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(Gpu *gpu, MemoryV2 *memory) {
    ENTER(gpu);
    if (memory->version != (sizeof *memory | 2 << 24)) return 25;  /* ARGUMENT_VERSION_MISMATCH */
    memory->total = gpu->total, memory->used = gpu->used, memory->reserved = gpu->reserved;
    memory->free = gpu->total - gpu->used - gpu->reserved;
    return SUCCESS;
}

int nvmlDeviceGetTemperatureV(Gpu *gpu, Temperature *temperature) {
    ENTER(gpu);
    temperature->temperature = gpu->celsius;
    return temperature->sensor ? INVALID_ARGUMENT : SUCCESS;
}

GETTER(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, gpu->reasons)
PROCESS_LIST(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESS_LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESS_LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")
#endif

/* --- events ------------------------------------------------------------------------------------------------------- */

int nvmlEventSetCreate(EventSet **set) {
    ENTER(NULL);
    *set = calloc(1, sizeof **set);
    (*set)->delivered = world.xid_count;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(Gpu *gpu, unsigned long long types, EventSet *set) {
    ENTER(gpu);
    if (types != XID_EVENT) return INVALID_ARGUMENT;
    set->registered |= 1ULL << index_of(gpu);
    return SUCCESS;
}

static int next_event(EventSet *set, EventData *event) {
    while (set->delivered < world.xid_count) {
        Xid xid = world.xids[set->delivered++];
        if (set->registered & 1ULL << xid.gpu) {
            *event = (EventData){.device = &world.gpus[xid.gpu], .type = XID_EVENT, .data = xid.number};
            return 1;
        }
    }
    return 0;
}

int nvmlEventSetWait_v2(EventSet *set, EventData *event, unsigned timeout_ms) {
    for (unsigned waited_ms = 0;; waited_ms += 20) {
        ENTER(NULL);
        if (next_event(set, event)) return SUCCESS;
        for (int i = 0; i < world.count; i++)
            if (set->registered & 1ULL << i && (world.gpus[i].lost || is_stale[i])) return GPU_IS_LOST;
        if (waited_ms >= timeout_ms) return TIMEOUT;
        unsigned step_ms = timeout_ms - waited_ms < 20 ? timeout_ms - waited_ms : 20;
        nanosleep(&(struct timespec){.tv_nsec = step_ms * 1000000L}, NULL);
    }
}

int nvmlEventSetFree(EventSet *set) {
    ENTER(NULL);
    free(set);
    return SUCCESS;
}
