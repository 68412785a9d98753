// What the team needs of the operating system: threads, a monitor to sleep in, a clock, a pause.
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#include <windows.h>
#else
#include <pthread.h>
#include <time.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pio {

// Tells the processor that this thread spins.
inline void cpu_pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#if defined(_WIN32)

inline int64_t now() {  // ns
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    return static_cast<int64_t>(static_cast<double>(count.QuadPart) * 1e9 / static_cast<double>(frequency.QuadPart));
}

class Monitor {
   public:
    void open() {
        InitializeSRWLock(&lock_);
        InitializeConditionVariable(&changed_);
    }
    void close() {}
    void enter() { AcquireSRWLockExclusive(&lock_); }
    void leave() { ReleaseSRWLockExclusive(&lock_); }
    void sleep() { SleepConditionVariableSRW(&changed_, &lock_, INFINITE, 0); }
    void wake_all() { WakeAllConditionVariable(&changed_); }

   private:
    SRWLOCK lock_;
    CONDITION_VARIABLE changed_;
};

struct Thread {
    HANDLE handle;
    void (*run)(void*);
    void* argument;
};

inline DWORD WINAPI thread_main(void* self) {
    auto* thread = static_cast<Thread*>(self);
    thread->run(thread->argument);
    return 0;
}

inline bool thread_start(Thread& thread, void (*run)(void*), void* argument) {
    thread.run = run;
    thread.argument = argument;
    thread.handle = CreateThread(nullptr, 0, thread_main, &thread, 0, nullptr);
    return thread.handle != nullptr;
}

inline void thread_join(Thread& thread) {
    WaitForSingleObject(thread.handle, INFINITE);
    CloseHandle(thread.handle);
}

#else

inline int64_t now() {  // ns
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

class Monitor {
   public:
    void open() {
        pthread_mutex_init(&lock_, nullptr);
        pthread_cond_init(&changed_, nullptr);
    }
    void close() {
        pthread_cond_destroy(&changed_);
        pthread_mutex_destroy(&lock_);
    }
    void enter() { pthread_mutex_lock(&lock_); }
    void leave() { pthread_mutex_unlock(&lock_); }
    void sleep() { pthread_cond_wait(&changed_, &lock_); }
    void wake_all() { pthread_cond_broadcast(&changed_); }

   private:
    pthread_mutex_t lock_;
    pthread_cond_t changed_;
};

struct Thread {
    pthread_t handle;
    void (*run)(void*);
    void* argument;
};

inline void* thread_main(void* self) {
    auto* thread = static_cast<Thread*>(self);
    thread->run(thread->argument);
    return nullptr;
}

inline bool thread_start(Thread& thread, void (*run)(void*), void* argument) {
    thread.run = run;
    thread.argument = argument;
    return pthread_create(&thread.handle, nullptr, thread_main, &thread) == 0;
}

inline void thread_join(Thread& thread) { pthread_join(thread.handle, nullptr); }

#endif

}  // namespace pio
