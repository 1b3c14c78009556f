// A libcuda.so.1 on host memory: as much of the driver as the backends call, so that the published cuda-bindings can be
// tested where there is no GPU. Kernels are the emulator's libraries; the path of one is its image. Work runs at once,
// or is kept by a capture. Every call but those on devices and contexts needs a current context, as on a GPU.
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

using Result = int;
using Handle = void*;
using Address = uint64_t;
using Work = std::vector<std::function<void()>>;
using Parameters = int (*)(const char*, unsigned*, int);
using Launch = int (*)(const char*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void**, int,
                       const unsigned*);

namespace {
constexpr Result OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201;
constexpr Result NO_BINARY = 209, INVALID_HANDLE = 400, NOT_FOUND = 500, CAPTURING = 900;
constexpr size_t TOTAL = size_t{16} << 30;
const Handle PRIMARY = reinterpret_cast<Handle>(0xA000);

std::vector<Handle> contexts;
uintptr_t last_handle = 0x5000;
std::map<Handle, void*> modules;
std::map<Handle, std::pair<void*, std::string>> functions;
std::map<Handle, int> granted;
std::map<Handle, Work> recording, graphs;
std::map<Handle, bool> timed;
std::map<Address, size_t> sizes_of;
size_t used;

Handle fresh() { return reinterpret_cast<Handle>(last_handle += 16); }

Result enqueue(Handle stream, std::function<void()> work) {
  auto found = recording.find(stream);
  if (found != recording.end()) {
    found->second.push_back(work);
  } else {
    work();
  }
  return OK;
}

Result allocate(void** target, size_t bytes) { return posix_memalign(target, 256, bytes) ? OUT_OF_MEMORY : OK; }
}  // namespace

#define NEEDS_CONTEXT \
  if (contexts.empty()) return INVALID_CONTEXT

extern "C" {
Result cuInit(unsigned) { return OK; }

Result cuDriverGetVersion(int* version) {
  *version = 12090;
  return OK;
}

Result cuGetErrorString(Result code, const char** text) {
  *text = code == OUT_OF_MEMORY  ? "out of memory"
          : code == NO_BINARY    ? "no kernel image is available for execution on the device"
          : code == NOT_FOUND    ? "named symbol not found"
          : code == INVALID_HANDLE ? "invalid resource handle"
                                   : "an error of the stub";
  return OK;
}

Result cuDeviceGet(int* device, int ordinal) {
  *device = 0;
  return ordinal ? INVALID_DEVICE : OK;
}

Result cuDeviceGetName(char* name, int length, int) {
  strncpy(name, "Stub", length);
  return OK;
}

Result cuDeviceGetAttribute(int* value, int attribute, int) {
  const std::map<int, int> known = {{16, 8}, {18, 1}, {75, 8}, {76, 7}, {97, 163 * 1024}};
  *value = known.at(attribute);
  return OK;
}

Result cuDeviceComputeCapability(int* major, int* minor, int) {
  *major = 8;
  *minor = 7;
  return OK;
}

Result cuDevicePrimaryCtxRetain(Handle* context, int) {
  *context = PRIMARY;
  return OK;
}

Result cuDevicePrimaryCtxRelease_v2(int) { return OK; }

Result cuCtxGetCurrent(Handle* context) {
  *context = contexts.empty() ? nullptr : contexts.back();
  return OK;
}

Result cuCtxGetDevice(int* device) {
  NEEDS_CONTEXT;
  *device = 0;
  return OK;
}

Result cuCtxPushCurrent_v2(Handle context) {
  contexts.push_back(context);
  return OK;
}

Result cuCtxPopCurrent_v2(Handle* context) {
  NEEDS_CONTEXT;
  *context = contexts.back();
  contexts.pop_back();
  return OK;
}

Result cuCtxSynchronize() {
  NEEDS_CONTEXT;
  return OK;
}

Result cuMemAlloc_v2(Address* target, size_t bytes) {
  NEEDS_CONTEXT;
  void* found = nullptr;
  if (bytes > TOTAL - used || allocate(&found, bytes)) return OUT_OF_MEMORY;
  *target = reinterpret_cast<Address>(found);
  sizes_of[*target] = bytes;
  used += bytes;
  return OK;
}

Result cuMemFree_v2(Address address) {
  NEEDS_CONTEXT;
  auto found = sizes_of.find(address);
  if (found == sizes_of.end()) return INVALID_VALUE;
  used -= found->second;
  sizes_of.erase(found);
  free(reinterpret_cast<void*>(address));
  return OK;
}

Result cuMemHostAlloc(void** target, size_t bytes, unsigned) {
  NEEDS_CONTEXT;
  return allocate(target, bytes);
}

Result cuMemHostGetDevicePointer_v2(Address* target, void* host, unsigned) {
  NEEDS_CONTEXT;
  *target = reinterpret_cast<Address>(host);
  return OK;
}

Result cuMemFreeHost(void* host) {
  NEEDS_CONTEXT;
  free(host);
  return OK;
}

Result cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  NEEDS_CONTEXT;
  *free_bytes = TOTAL - used;
  *total = TOTAL;
  return OK;
}

Result cuMemcpyHtoDAsync_v2(Address target, const void* source, size_t bytes, Handle stream) {
  NEEDS_CONTEXT;
  return enqueue(stream, [=] { memcpy(reinterpret_cast<void*>(target), source, bytes); });
}

Result cuMemcpyDtoHAsync_v2(void* target, Address source, size_t bytes, Handle stream) {
  NEEDS_CONTEXT;
  return enqueue(stream, [=] { memcpy(target, reinterpret_cast<void*>(source), bytes); });
}

Result cuMemcpyDtoDAsync_v2(Address target, Address source, size_t bytes, Handle stream) {
  NEEDS_CONTEXT;
  return enqueue(stream, [=] { memcpy(reinterpret_cast<void*>(target), reinterpret_cast<void*>(source), bytes); });
}

Result cuMemsetD8Async(Address target, unsigned char value, size_t bytes, Handle stream) {
  NEEDS_CONTEXT;
  return enqueue(stream, [=] { memset(reinterpret_cast<void*>(target), value, bytes); });
}

Result cuModuleLoadData(Handle* module, const void* image) {
  NEEDS_CONTEXT;
  const char* path = static_cast<const char*>(image);
  void* library = *path == '/' ? dlopen(path, RTLD_NOW) : nullptr;
  if (!library) return NO_BINARY;
  *module = fresh();
  modules[*module] = library;
  return OK;
}

Result cuModuleLoadDataEx(Handle* module, const void* image, unsigned count, int* options, void** values) {
  for (unsigned i = 0; i < count; i++) {
    if (options[i] == 4 || options[i] == 6) values[i] = nullptr;  // bytes in the logs: none
  }
  return cuModuleLoadData(module, image);
}

Result cuModuleUnload(Handle module) {
  NEEDS_CONTEXT;
  return modules.erase(module) ? OK : INVALID_HANDLE;
}

Result cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  NEEDS_CONTEXT;
  auto parameters = reinterpret_cast<Parameters>(dlsym(modules.at(module), "emulator_parameters"));
  if (parameters(name, nullptr, 0) < 0) return NOT_FOUND;
  *function = fresh();
  functions[*function] = {modules.at(module), name};
  return OK;
}

Result cuFuncGetAttribute(int* value, int attribute, Handle) {
  NEEDS_CONTEXT;
  *value = attribute == 0 ? 256 : attribute == 6 ? 87 : 0;
  return OK;
}

Result cuFuncSetAttribute(Handle function, int attribute, int value) {
  NEEDS_CONTEXT;
  if (attribute != 8) return INVALID_VALUE;
  granted[function] = value;
  return OK;
}

// pycuda still makes this call before each launch.
Result cuFuncSetBlockShape(Handle function, int, int, int) {
  NEEDS_CONTEXT;
  return functions.count(function) ? OK : INVALID_HANDLE;
}

Result cuLaunchKernel(Handle function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, Handle stream, void** params, void** extra) {
  NEEDS_CONTEXT;
  if (shared > 48 * 1024 && static_cast<int>(shared) > granted[function]) return INVALID_VALUE;
  const auto [library, name] = functions.at(function);
  unsigned sizes[64];
  const int count = reinterpret_cast<Parameters>(dlsym(library, "emulator_parameters"))(name.c_str(), sizes, 64);
  const std::vector<unsigned> given(sizes, sizes + count);
  std::vector<std::vector<char>> kept;
  // `extra` is {1, buffer, 2, &size, 0}: the arguments one after the other, each at its own alignment.
  const char* buffer = extra ? static_cast<const char*>(extra[1]) : nullptr;
  size_t offset = 0;
  for (int i = 0; i < count; i++) {
    offset = (offset + given[i] - 1) / given[i] * given[i];
    const char* value = buffer ? buffer + offset : static_cast<const char*>(params[i]);
    kept.emplace_back(value, value + given[i]);
    offset += given[i];
  }
  if (extra && *static_cast<size_t*>(extra[3]) != offset) return INVALID_VALUE;
  const auto launch = reinterpret_cast<Launch>(dlsym(library, "emulator_launch"));
  const std::string kernel = name;
  return enqueue(stream, [=] {
    std::vector<void*> values;
    for (const auto& value : kept) values.push_back(const_cast<char*>(value.data()));
    launch(kernel.c_str(), gx, gy, gz, bx, by, bz, shared, values.data(), count, given.data());
  });
}

Result cuStreamCreate(Handle* stream, unsigned) {
  NEEDS_CONTEXT;
  *stream = fresh();
  return OK;
}

Result cuStreamDestroy_v2(Handle) {
  NEEDS_CONTEXT;
  return OK;
}

Result cuStreamSynchronize(Handle stream) {
  NEEDS_CONTEXT;
  return recording.count(stream) ? CAPTURING : OK;
}

Result cuStreamWaitEvent(Handle, Handle event, unsigned) {
  NEEDS_CONTEXT;
  return timed.count(event) ? OK : INVALID_HANDLE;
}

Result cuEventCreate(Handle* event, unsigned flags) {
  NEEDS_CONTEXT;
  *event = fresh();
  timed[*event] = !(flags & 2);
  return OK;
}

Result cuEventDestroy_v2(Handle event) {
  NEEDS_CONTEXT;
  return timed.erase(event) ? OK : INVALID_HANDLE;
}

Result cuEventRecord(Handle event, Handle) {
  NEEDS_CONTEXT;
  return timed.count(event) ? OK : INVALID_HANDLE;
}

Result cuEventQuery(Handle event) {
  NEEDS_CONTEXT;
  return timed.count(event) ? OK : INVALID_HANDLE;
}

Result cuEventSynchronize(Handle event) {
  NEEDS_CONTEXT;
  return timed.count(event) ? OK : INVALID_HANDLE;
}

Result cuEventElapsedTime(float* milliseconds, Handle start, Handle end) {
  NEEDS_CONTEXT;
  *milliseconds = 0.5f;
  return timed.at(start) && timed.at(end) ? OK : INVALID_HANDLE;
}

Result cuEventElapsedTime_v2(float* milliseconds, Handle start, Handle end) {
  return cuEventElapsedTime(milliseconds, start, end);
}

Result cuStreamBeginCapture_v2(Handle stream, int mode) {
  NEEDS_CONTEXT;
  if (mode != 1 || !stream) return INVALID_VALUE;
  recording[stream] = {};
  return OK;
}

Result cuStreamEndCapture(Handle stream, Handle* graph) {
  NEEDS_CONTEXT;
  *graph = fresh();
  graphs[*graph] = recording.at(stream);
  recording.erase(stream);
  return OK;
}

Result cuGraphInstantiateWithFlags(Handle* executable, Handle graph, unsigned long long) {
  NEEDS_CONTEXT;
  *executable = fresh();
  graphs[*executable] = graphs.at(graph);
  return OK;
}

Result cuGraphDestroy(Handle graph) {
  NEEDS_CONTEXT;
  return graphs.erase(graph) ? OK : INVALID_HANDLE;
}

Result cuGraphExecDestroy(Handle executable) { return cuGraphDestroy(executable); }

Result cuGraphLaunch(Handle executable, Handle stream) {
  NEEDS_CONTEXT;
  auto found = graphs.find(executable);
  if (found == graphs.end()) return INVALID_HANDLE;
  for (const auto& work : found->second) enqueue(stream, work);
  return OK;
}

// How cuda-bindings finds every function: by its plain name, for a version whose form is the newest here.
Result cuGetProcAddress_v2(const char* name, void** target, int, uint64_t, int* status) {
  Dl_info self;
  dladdr(reinterpret_cast<void*>(cuInit), &self);
  void* library = dlopen(self.dli_fname, RTLD_NOW);
  *target = nullptr;
  for (const char* suffix : {"WithFlags", "_v2", ""}) {
    if (!*target) *target = dlsym(library, (std::string(name) + suffix).c_str());
  }
  if (status) *status = *target ? 0 : 1;
  return *target ? OK : NOT_FOUND;
}

Result cuGetProcAddress(const char* name, void** target, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, target, version, flags, nullptr);
}
}
