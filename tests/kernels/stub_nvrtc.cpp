// A libnvrtc that returns given images, so that what surrounds the real one is tested without it. Three folders above
// the library lie `version` ("12 6"), `images/<arch>`, `images/log` and `calls`, to which every compilation appends
// "name arch"; a source that says REFUSE does not compile.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

struct Program {
  std::string source, name, log, image;
};

static std::string root() {
  Dl_info info;
  dladdr(reinterpret_cast<void*>(&root), &info);
  std::string path = info.dli_fname;
  for (int i = 0; i < 4; i++) path.resize(path.rfind('/'));
  return path;
}

static std::string image_of(const std::string& arch) {
  std::ifstream file(root() + "/images/" + arch, std::ios::binary);
  std::ostringstream all;
  all << file.rdbuf();
  return all.str();
}

static int give(const std::string& text, char* target) {
  std::memcpy(target, text.data(), text.size());
  return 0;
}

extern "C" {
const char* nvrtcGetErrorString(int code) { return code == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR_OTHER"; }
int nvrtcVersion(int* major, int* minor) { return std::ifstream(root() + "/version") >> *major >> *minor, 0; }
int nvrtcGetNumSupportedArchs(int* count) { return *count = 4, 0; }
int nvrtcGetSupportedArchs(int* archs) {
  int major, minor;
  nvrtcVersion(&major, &minor);
  const int known[] = {80, 87, 90, major >= 13 ? 110 : 89};
  return std::memcpy(archs, known, sizeof known), 0;
}
int nvrtcCreateProgram(Program** program, const char* source, const char* name, int count, const char* const* headers,
                       const char* const* names) {
  *program = new Program{source, name, "", ""};
  for (int i = 0; i < count; i++) (*program)->source += headers[i] + std::string(names[i]);
  return 0;
}
int nvrtcDestroyProgram(Program** program) { return delete *program, 0; }
int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
  std::string arch;
  for (int i = 0; i < count; i++)
    if (!std::strncmp(options[i], "--gpu-architecture=", 19)) arch = options[i] + 19;
  std::ofstream(root() + "/calls", std::ios::app) << program->name << " " << arch << "\n";
  program->log = image_of("log");
  program->log.push_back('\0');
  program->image = image_of(arch);
  if (program->source.find("REFUSE") == std::string::npos) return 0;
  program->log = "source.cu(1): error: REFUSE is undefined";
  return 6;
}
int nvrtcGetProgramLogSize(Program* program, size_t* size) { return *size = program->log.size(), 0; }
int nvrtcGetProgramLog(Program* program, char* log) { return give(program->log, log); }
int nvrtcGetCUBINSize(Program* program, size_t* size) { return *size = program->image.size(), 0; }
int nvrtcGetCUBIN(Program* program, char* image) { return give(program->image, image); }
int nvrtcGetPTXSize(Program* program, size_t* size) { return *size = program->image.size() + 1, 0; }
int nvrtcGetPTX(Program* program, char* image) { return image[program->image.size()] = 0, give(program->image, image); }
}
