// The functions of the driver's interface that the rig has, for its tests.
#pragma once
#include "../driver_types.h"

RIG_API CUresult cuCtxDisablePeerAccess(CUcontext context);
RIG_API CUresult cuCtxEnablePeerAccess(CUcontext context, unsigned flags);
RIG_API CUresult cuCtxGetCurrent(CUcontext *context);
RIG_API CUresult cuCtxGetDevice(CUdevice *number);
RIG_API CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest);
RIG_API CUresult cuCtxSetCurrent(CUcontext context);
RIG_API CUresult cuCtxSetFlags(unsigned);
RIG_API CUresult cuCtxSynchronize();
RIG_API CUresult cuDeviceCanAccessPeer(int *can, CUdevice number, CUdevice peer);
RIG_API CUresult cuDeviceGet(CUdevice *number, int ordinal);
RIG_API CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice number);
RIG_API CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice number);
RIG_API CUresult cuModuleLoadData(CUmodule *module, const void *image);
RIG_API CUresult cuDeviceGetCount(int *count);
RIG_API CUresult cuDeviceGetName(char *name, int bytes, CUdevice number);
RIG_API CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice number);
RIG_API CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice number);
RIG_API CUresult cuDevicePrimaryCtxRelease_v2(CUdevice number);
RIG_API CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice number);
RIG_API CUresult cuDeviceTotalMem_v2(std::size_t *bytes, CUdevice number);
RIG_API CUresult cuDriverGetVersion(int *version);
RIG_API CUresult cuEventCreate(CUevent *handle, unsigned flags);
RIG_API CUresult cuEventDestroy_v2(CUevent handle);
RIG_API CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end);
RIG_API CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end);
RIG_API CUresult cuEventQuery(CUevent handle);
RIG_API CUresult cuEventRecord(CUevent handle, CUstream stream_handle);
RIG_API CUresult cuEventSynchronize(CUevent handle);
RIG_API CUresult cuFuncGetAttribute(int *value, int attribute, CUfunction function);
RIG_API CUresult cuFuncSetAttribute(CUfunction function, int attribute, int value);
RIG_API CUresult cuGetErrorName(CUresult code, const char **name);
RIG_API CUresult cuGetErrorString(CUresult code, const char **text);
RIG_API CUresult cuGraphAddKernelNode_v2(CUgraphNode *added, CUgraph graph, const CUgraphNode *before,
                                         std::size_t count, const KernelNode *node);
RIG_API CUresult cuGraphCreate(CUgraph *graph, unsigned flags);
RIG_API CUresult cuGraphDestroy(CUgraph graph);
RIG_API CUresult cuGraphExecDestroy(CUgraphExec executable);
RIG_API CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long);
RIG_API CUresult cuGraphLaunch(CUgraphExec executable, CUstream handle);
RIG_API CUresult cuGraphUpload(CUgraphExec executable, CUstream);
RIG_API CUresult cuInit(unsigned flags);
RIG_API CUresult cuLaunchHostFunc(CUstream handle, CUhostFn function, void *argument);
RIG_API CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                                CUstream handle, void **parameters, void **extra);
RIG_API CUresult cuMemAllocAsync(CUdeviceptr *at, std::size_t bytes, CUstream handle);
RIG_API CUresult cuMemAllocHost_v2(void **at, std::size_t bytes);
RIG_API CUresult cuMemAlloc_v2(CUdeviceptr *at, std::size_t bytes);
RIG_API CUresult cuMemFreeAsync(CUdeviceptr at, CUstream handle);
RIG_API CUresult cuMemFreeHost(void *at);
RIG_API CUresult cuMemFree_v2(CUdeviceptr at);
RIG_API CUresult cuMemGetInfo_v2(std::size_t *free, std::size_t *total);
RIG_API CUresult cuMemHostAlloc(void **at, std::size_t bytes, unsigned);
RIG_API CUresult cuMemHostRegister_v2(void *at, std::size_t bytes, unsigned);
RIG_API CUresult cuMemHostUnregister(void *at);
RIG_API CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes, CUstream stream);
RIG_API CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, std::size_t bytes);
RIG_API CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, std::size_t bytes, CUstream handle);
RIG_API CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, std::size_t bytes);
RIG_API CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, std::size_t bytes, CUstream handle);
RIG_API CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, std::size_t bytes);
RIG_API CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context,
                                   std::size_t bytes, CUstream stream);
RIG_API CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, std::size_t bytes, CUstream stream);
RIG_API CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char value, std::size_t bytes);
RIG_API CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name);
RIG_API CUresult cuModuleLoad(CUmodule *module, const char *path);
RIG_API CUresult cuModuleUnload(CUmodule module);
RIG_API CUresult cuStreamBeginCapture_v2(CUstream handle, int);
RIG_API CUresult cuStreamCreate(CUstream *handle, unsigned flags);
RIG_API CUresult cuStreamCreateWithPriority(CUstream *handle, unsigned flags, int);
RIG_API CUresult cuStreamDestroy_v2(CUstream handle);
RIG_API CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph);
RIG_API CUresult cuStreamIsCapturing(CUstream handle, int *status);
RIG_API CUresult cuStreamQuery(CUstream handle);
RIG_API CUresult cuStreamSynchronize(CUstream handle);
RIG_API CUresult cuStreamWaitEvent(CUstream handle, CUevent event_handle, unsigned);
RIG_API void sdshard_rig_set(const char *key, const char *value);
RIG_API void sdshard_rig_reset();
RIG_API std::uint64_t sdshard_rig_calls(const char *function, int device);
