/* A CUDA runtime whose calls succeed and do nothing: what a build of torch for CUDA asks before it computes. */
#include <driver_types.h>
#include <stdlib.h>
#include <string.h>
#define DONE(name) int name(void) { return 0; }
DONE(cudaSetDevice) DONE(cudaStreamQuery) DONE(cudaStreamSynchronize) DONE(cudaDeviceSynchronize) DONE(cudaFree)
DONE(cudaGetLastError) DONE(cudaPeekAtLastError) DONE(cudaStreamWaitEvent)
DONE(cudaEventRecord) DONE(cudaEventQuery) DONE(cudaEventDestroy) DONE(cudaEventSynchronize)
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -1; return 0; }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = malloc(1); return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { *event = malloc(1); return 0; }
int cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaMemGetInfo(size_t *left, size_t *total) { *left = *total = 80ul << 30; return 0; }
int cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "NVIDIA H100 80GB HBM3");
  found->major = 9, found->minor = 0, found->multiProcessorCount = 132, found->warpSize = 32;
  found->totalGlobalMem = 80ul << 30, found->maxThreadsPerBlock = 1024, found->maxThreadsPerMultiProcessor = 2048;
  found->sharedMemPerBlockOptin = 232448, found->sharedMemPerMultiprocessor = 233472, found->regsPerMultiprocessor = 65536;
  return 0;
}
