@echo off
rem Double-click this file: it sets everything up the first time and opens the window.
chcp 65001 >nul
cd /d "%~dp0"
rem The environment checks itself; where its Python was removed, another one mends it.
".venv\Scripts\python.exe" -c "" >nul 2>nul && (
    ".venv\Scripts\python.exe" start.py %*
    goto ended
)
for %%v in (3.12 3.11 3.13 3.10) do (
    py -%%v -c "" >nul 2>nul && (
        py -%%v start.py %*
        goto ended
    )
)
rem Windows' own "python" may be a stand-in that opens the store: only one that runs counts.
python -c "" >nul 2>nul && (
    python start.py %*
    goto ended
)
echo Python was not found. Install Python 3.12 (64-bit) from https://www.python.org/downloads/
echo and tick "Add python.exe to PATH" there. Then double-click this file again.
echo 没有找到 Python。请从 https://www.python.org/downloads/ 安装 Python 3.12（64 位），
echo 安装时勾选 "Add python.exe to PATH"，然后再次双击本文件。
pause
exit /b 2
:ended
if errorlevel 1 pause
